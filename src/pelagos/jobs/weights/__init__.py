"""Weights: where they come from, how a model is loaded, and where it goes."""
