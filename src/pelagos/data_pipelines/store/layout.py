"""Where everything lies inside a dataset's folder, and the Zarr metadata that says so."""

from __future__ import annotations

import json
from typing import Any

from pelagos.data_pipelines.store.schema import FORMAT_NAME, DatasetSpec

MANIFEST_KEY = "manifest.json"
GROUP_KEY = "zarr.json"
SPEC_KEY = ".pelagos/spec.json"
SIDECAR_PREFIX = ".pelagos/shards"
SHARD_PREFIX = "data/c"

_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}
BFLOAT16_ATTRIBUTE = "bfloat16"  # of `data`: its uint16 numbers are the upper halves of float32
BFLOAT16_NAN = 0x7FC0
BLOSC_LEVEL = {"lz4": 5, "zstd": 3}


def shard_key(spec: DatasetSpec, shard: int) -> str:
    """The object that holds shard `shard`: `data/c/<shard>/0/0/0/0`."""
    return "/".join([SHARD_PREFIX, str(shard), *["0"] * (len(spec.shape) - 1)])


def sidecar_key(shard: int) -> str:
    """The object with what is known about one written shard."""
    return f"{SIDECAR_PREFIX}/{shard}.json"


def dumps(value: Any) -> bytes:
    """JSON as it is stored: refuses NaN, which other readers of JSON do."""
    return json.dumps(value, indent=1, allow_nan=False).encode()


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
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
    """`zarr.json` of an array. The fill value is NaN, so that a reader that treats a missing chunk
    as "fill value" gives NaN, which shows, and never zeros, which do not."""
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


def frame_codecs(spec: DatasetSpec) -> list[dict[str, Any]]:
    """How one frame becomes bytes: little endian, Blosc unless `none`, crc32c."""
    codecs: list[dict[str, Any]] = [_LITTLE_ENDIAN]
    if spec.compression != "none":
        configuration = {
            "typesize": spec.stored_dtype.itemsize,
            "cname": spec.compression,
            "clevel": BLOSC_LEVEL[spec.compression],
            "shuffle": "shuffle",
            "blocksize": 0,
        }
        codecs.append({"name": "blosc", "configuration": configuration})
    return [*codecs, _CRC32C]


def data_metadata(spec: DatasetSpec) -> dict[str, Any]:
    """`data/zarr.json`: one sharded array; an inner chunk is one frame with all its channels, or
    the part of one inside `frame_chunk_shape`."""
    sharding = {
        "chunk_shape": [1, 1, len(spec.fields), *spec.frame_chunk_shape],
        "codecs": frame_codecs(spec),
        "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
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
        attributes[BFLOAT16_ATTRIBUTE] = True
    return array_metadata(
        spec.shape,
        spec.stored_dtype.name,
        (spec.shard_trajectories, spec.num_frames, len(spec.fields), *covered),
        [{"name": "sharding_indexed", "configuration": sharding}],
        ("trajectory", "time", "channel", *spec.axis_names),
        attributes,
        BFLOAT16_NAN if is_bfloat16 else "NaN",
    )


def vector_metadata(length: int, dimension: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """A float64 vector in one chunk: coordinates and parameters."""
    return array_metadata(
        (length,), "float64", (length,), [_LITTLE_ENDIAN, _CRC32C], (dimension,), attributes
    )


def array_documents(spec: DatasetSpec) -> dict[str, dict[str, Any]]:
    """Zarr metadata of every node below the root, by path: `{"data": …, "time": …}`."""
    documents = {"data": data_metadata(spec)}
    for name, points in spec.coordinates().items():
        attributes = {"long_name": name, "units": "1"}
        if name != "time":
            attributes["axis"] = name.upper()
        documents[name] = vector_metadata(len(points), name, attributes)
    if spec.parameter_names:
        documents["parameters"] = group_metadata({})
    for name in spec.parameter_names:
        documents[f"parameters/{name}"] = vector_metadata(
            spec.num_trajectories, "trajectory", {"long_name": name}
        )
    return documents


def root_document(spec: DatasetSpec, extra: dict[str, Any]) -> dict[str, Any]:
    """The group's `zarr.json`: the spec as attributes, and every array's metadata inline."""
    attributes = {
        "Conventions": "CF-1.11",
        "format": FORMAT_NAME,
        "format_version": spec.format_version,
        **spec.to_json(),
        **extra,
    }
    return {
        **group_metadata(attributes),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": array_documents(spec),
        },
    }
