"""Where images come from: what `Images` asks of a source, and one file for each kind of it."""
