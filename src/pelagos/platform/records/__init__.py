"""The directory of a run: its history, in files that any text tool reads."""
