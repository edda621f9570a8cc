"""The commands: one light file each, which says what can be typed, and imports its analysis when that was right."""
