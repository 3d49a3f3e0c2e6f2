"""Errors of forecasts and quantities derived from them, as functions of arrays."""
