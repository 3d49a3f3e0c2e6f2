"""Forecasts of held-out trajectories by a trained model, and their scores."""
