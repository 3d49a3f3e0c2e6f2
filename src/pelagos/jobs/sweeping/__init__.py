"""The trials of a sweep, and populations."""
