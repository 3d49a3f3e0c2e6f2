"""The `pelagos` command: thin functions that parse, call a job, print, and set the exit status."""
