"""Networks by name, one module for each codebase: how it makes them, trained or not, and how an image becomes their input."""
