"""The embedded lab: scenes drawn by code, the models that learn from them, and their weights."""
