"""Conclusions from scores: which forecasts are better, over which steps, and with how much data."""
