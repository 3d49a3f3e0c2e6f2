"""Pelagos: distributed pretraining and fine-tuning of foundation models for PDEs and images."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pelagos")
except PackageNotFoundError:  # a bare checkout on sys.path, never installed
    __version__ = "0.0.0+uninstalled"
