"""The paper: which model plays which part, what is measured of them, what follows, and how it is shown."""
