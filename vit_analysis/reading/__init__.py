"""Reading models while they run: hooks, changes, the loop over images, sums, processes, intervals."""
