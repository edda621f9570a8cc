"""Images come from sources: what `Images` asks of one is here, and one file for each kind of it."""
