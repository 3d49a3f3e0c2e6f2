"""Layers and tables that several networks share."""
