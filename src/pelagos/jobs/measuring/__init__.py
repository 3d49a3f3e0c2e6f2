"""Measuring trained networks for `evaluate` and `compare-strategies`."""
