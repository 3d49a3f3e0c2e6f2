"""The queue of runs on a Ray cluster: its process, and its rules."""
