"""What `pelagos new` looks at, and the files that it writes."""
