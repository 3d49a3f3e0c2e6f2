"""The coordinates of a dataset: their contents, and their metadata by the CF conventions.

Time and positions are float64. `channel` has the names of the fields and `trajectory` their numbers
from 0, so that xarray selects by name: `ds.sel(channel="pressure")`. Datasets of before, which Pelagos
reads and verifies as they are, lack these two.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from pelagos.data_pipelines.store.schema import DatasetSpec
from pelagos.data_pipelines.store.zarr_metadata import (
    CRC32C,
    LITTLE_ENDIAN,
    array_metadata,
    vector_metadata,
)

CHANNEL, TRAJECTORY = "channel", "trajectory"


def coordinate_contents(spec: DatasetSpec) -> dict[str, bytes]:
    """The one chunk of each coordinate, without its checksum."""
    contents = {name: points.astype("<f8").tobytes() for name, points in spec.coordinates().items()}
    contents[CHANNEL] = _texts(spec.field_names)
    contents[TRAJECTORY] = np.arange(spec.num_trajectories, dtype="<i8").tobytes()
    return contents


def is_coordinate(spec: DatasetSpec, name: str, content: bytes) -> bool:
    """Whether that is the content of a coordinate; positions up to the rounding of their sums.

    That of the trajectories may be longer, as the dataset may be appended to at the moment.
    """
    wanted = coordinate_contents(spec)[name]
    if name == TRAJECTORY:
        return content[: len(wanted)] == wanted
    if name == CHANNEL or len(content) != len(wanted):
        return content == wanted
    found, points = np.frombuffer(content, "<f8"), np.frombuffer(wanted, "<f8")
    return bool(np.allclose(found, points, rtol=1e-12, atol=0))


def coordinate_documents(spec: DatasetSpec, *, earlier: bool = False) -> dict[str, dict[str, Any]]:
    """`zarr.json` of each coordinate; `earlier`: as datasets of before have it."""
    documents = {}
    for name, points in spec.coordinates().items():
        attributes = {"long_name": name, "units": "1"}
        if name == "time" and not earlier:
            attributes = {
                "standard_name": "time",
                "long_name": "time since the first frame",
                "units": str(spec.generator.get("time_unit", "1")),
                "axis": "T",
            }
        elif name != "time":
            attributes["axis"] = name.upper()
            if name == "z" and not earlier:
                attributes["positive"] = "up"
        documents[name] = vector_metadata(len(points), name, attributes)
    if not earlier:
        documents[CHANNEL] = _vector(
            len(spec.fields), CHANNEL, "string", {"name": "vlen-utf8"}, {"long_name": "field"}, ""
        )
        documents[TRAJECTORY] = _vector(
            spec.num_trajectories,
            TRAJECTORY,
            "int64",
            LITTLE_ENDIAN,
            {"long_name": "number of the trajectory", "units": "1"},
            0,
        )
    return documents


def _vector(
    length: int,
    name: str,
    dtype: str,
    codec: dict[str, Any],
    attributes: dict[str, Any],
    fill_value: Any,
) -> dict[str, Any]:
    return array_metadata(
        (length,), dtype, (length,), [codec, CRC32C], (name,), attributes, fill_value
    )


def _texts(texts: tuple[str, ...]) -> bytes:
    """Zarr's `vlen-utf8`: how many texts, then each as its length in bytes and UTF-8."""
    encoded = [text.encode() for text in texts]
    parts = [struct.pack("<I", len(encoded))]
    parts += [struct.pack("<I", len(text)) + text for text in encoded]
    return b"".join(parts)
