"""Measuring trained networks: what `evaluate` and `compare-strategies` need."""
