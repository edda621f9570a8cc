"""Checkpoints of any trainer and codebase: read, their names turned into a module's own, and fitted strictly."""
