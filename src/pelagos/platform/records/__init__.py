"""The directory of a run: what happened, in files that any text tool reads."""
