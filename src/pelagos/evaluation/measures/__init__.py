"""Errors of forecasts and what follows from them, as functions of arrays."""
