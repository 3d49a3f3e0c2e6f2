"""`zarr.json` of groups and arrays, as Zarr v3 defines it."""

from __future__ import annotations

from typing import Any

LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C = {"name": "crc32c"}


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(
    shape: tuple[int, ...],
    dtype: str,
    chunk_shape: tuple[int, ...],
    codecs: list[dict[str, Any]],
    dimension_names: tuple[str, ...],
    attributes: dict[str, Any],
    fill_value: Any = "NaN",
) -> dict[str, Any]:
    """`zarr.json` of an array.

    The fill value is NaN, so that a reader that treats a missing chunk as "fill value" gives NaN,
    which shows, and never zeros, which do not.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "dimension_names": list(dimension_names),
        "attributes": attributes,
        "storage_transformers": [],
    }


def vector_metadata(length: int, dimension: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """A float64 vector in one chunk: positions and parameters."""
    return array_metadata(
        (length,), "float64", (length,), [LITTLE_ENDIAN, CRC32C], (dimension,), attributes
    )
