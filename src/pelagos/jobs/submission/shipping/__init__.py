"""The code and files that travel with a submitted run."""
