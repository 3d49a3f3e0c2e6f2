"""Forecasts of whole files: finding the model, reading starts, writing forecasts, block by block."""
