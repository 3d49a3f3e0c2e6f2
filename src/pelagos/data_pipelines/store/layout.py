"""Where everything lies inside a dataset's folder, and the Zarr metadata that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pelagos.data_pipelines.store.coordinates import CHANNEL, coordinate_documents
from pelagos.data_pipelines.store.schema import FORMAT_NAME, DatasetSpec
from pelagos.data_pipelines.store.zarr_metadata import (
    CRC32C,
    LITTLE_ENDIAN,
    array_metadata,
    group_metadata,
    vector_metadata,
)
from pelagos.infra.json_text import parse_json

MANIFEST_KEY = "manifest.json"
GROUP_KEY = "zarr.json"
SPEC_KEY = ".pelagos/spec.json"
SIDECAR_PREFIX = ".pelagos/shards"
SHARD_PREFIX = "data/c"

BFLOAT16_ATTRIBUTE = "bfloat16"  # of `data`: its uint16 numbers are the upper halves of float32
BFLOAT16_NAN = 0x7FC0
BLOSC_LEVEL = {"lz4": 5, "zstd": 3}
# Attributes of the group that are objects or lists of texts. They are stored as JSON text: netCDF has
# no such attributes, and xarray would refuse to write a dataset with one.
NESTED_ATTRIBUTES = (
    "fields",
    "boundary_conditions",
    "splits",
    "parameter_names",
    "constant_fields",
    "generator",
    "published_normalization",
    "physics",
    "given_fields",
    "masks",
    "statistics",
)


def shard_key(spec: DatasetSpec, shard: int) -> str:
    """The object that holds shard `shard`: `data/c/<shard>/0/0/0/0`."""
    return "/".join([SHARD_PREFIX, str(shard), *["0"] * (len(spec.shape) - 1)])


def sidecar_key(shard: int) -> str:
    """The object with the known facts about one written shard."""
    return f"{SIDECAR_PREFIX}/{shard}.json"


def dumps(value: Any) -> bytes:
    """JSON as it is stored: refuses NaN, which other readers of JSON do."""
    return json.dumps(value, indent=1, allow_nan=False).encode()


def frame_codecs(spec: DatasetSpec) -> list[dict[str, Any]]:
    """How one frame becomes bytes: little endian, Blosc unless `none`, crc32c."""
    codecs: list[dict[str, Any]] = [LITTLE_ENDIAN]
    if spec.compression != "none":
        configuration = {
            "typesize": spec.stored_dtype.itemsize,
            "cname": spec.compression,
            "clevel": BLOSC_LEVEL[spec.compression],
            "shuffle": "shuffle",
            "blocksize": 0,
        }
        codecs.append({"name": "blosc", "configuration": configuration})
    return [*codecs, CRC32C]


def data_metadata(spec: DatasetSpec, *, earlier: bool = False) -> dict[str, Any]:
    """`data/zarr.json`: one sharded array.

    An inner chunk is one frame with all its channels, or the part of one inside
    `frame_chunk_shape`.
    """
    sharding = {
        "chunk_shape": [1, 1, len(spec.fields), *spec.frame_chunk_shape],
        "codecs": frame_codecs(spec),
        "index_codecs": [LITTLE_ENDIAN, CRC32C],
        "index_location": "end",
    }
    # Zarr wants whole chunks in a shard: the last ones reach beyond a grid they do not divide.
    covered = (
        count * size for count, size in zip(spec.chunk_counts, spec.frame_chunk_shape, strict=True)
    )
    attributes: dict[str, Any] = {
        "long_name": spec.name,
        "channel_names": list(spec.field_names),
        "channel_units": [f.unit for f in spec.fields],
    }
    is_bfloat16 = spec.dtype == "bfloat16"
    if is_bfloat16:
        attributes[BFLOAT16_ATTRIBUTE] = True if earlier else 1  # netCDF has no truth values
    return array_metadata(
        spec.shape,
        spec.stored_dtype.name,
        (spec.shard_trajectories, spec.num_frames, len(spec.fields), *covered),
        [{"name": "sharding_indexed", "configuration": sharding}],
        ("trajectory", "time", "channel", *spec.axis_names),
        attributes,
        BFLOAT16_NAN if is_bfloat16 else "NaN",
    )


def array_documents(spec: DatasetSpec, *, earlier: bool = False) -> dict[str, dict[str, Any]]:
    """Zarr metadata of every node below the root, by path: `{"data": …, "time": …}`.

    `earlier`: as datasets have it that were written before there were coordinates of channels.
    """
    documents = {"data": data_metadata(spec, earlier=earlier)}
    documents |= coordinate_documents(spec, earlier=earlier)
    if spec.parameter_names:
        documents["parameters"] = group_metadata({})
    for name in spec.parameter_names:
        documents[f"parameters/{name}"] = vector_metadata(
            spec.num_trajectories, "trajectory", {"long_name": name}
        )
    return documents


def is_earlier(root: Mapping[str, Any]) -> bool:
    """Whether a group's `zarr.json` is that of a dataset without coordinates of channels."""
    listed = root.get("consolidated_metadata", {}).get("metadata", {})
    return bool(listed) and CHANNEL not in listed


def decoded_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a group with objects and lists in place of their JSON text."""
    return {
        key: parse_json(value) if key in NESTED_ATTRIBUTES and isinstance(value, str) else value
        for key, value in attributes.items()
    }


def root_document(spec: DatasetSpec, extra: dict[str, Any]) -> dict[str, Any]:
    """The group's `zarr.json`: the spec as attributes, and every array's metadata inline."""
    nested = {**spec.to_json(), **extra}
    attributes = {
        "Conventions": "CF-1.11",
        "title": spec.name,
        "source": spec.equation or "unknown",
        "history": "written by Pelagos",
        "format": FORMAT_NAME,
        "format_version": spec.format_version,
        **{
            key: json.dumps(value, allow_nan=False) if key in NESTED_ATTRIBUTES else value
            for key, value in nested.items()
        },
    }
    return {
        **group_metadata(attributes),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": array_documents(spec),
        },
    }
