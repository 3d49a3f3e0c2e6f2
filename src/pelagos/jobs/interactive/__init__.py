"""Pelagos from Python and from notebooks: `pelagos.train`, `pelagos.open_run` and what they return."""
