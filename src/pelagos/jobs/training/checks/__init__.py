"""Checks of a training before it starts: its classes, its fields, the network of its checkpoint."""
