"""Mapping files: descriptions of the arrays in a user's own layout."""

from pelagos.data_pipelines.convert.mapping.loading import load_mapping
from pelagos.data_pipelines.convert.mapping.schema import ArrayMapping, Mapping, ParameterMapping

__all__ = ["ArrayMapping", "Mapping", "ParameterMapping", "load_mapping"]
