"""Mapping files: what the arrays of somebody's own layout are."""

from pelagos.data_pipelines.convert.mapping.loading import load_mapping
from pelagos.data_pipelines.convert.mapping.schema import ArrayMapping, Mapping, ParameterMapping

__all__ = ["ArrayMapping", "Mapping", "ParameterMapping", "load_mapping"]
