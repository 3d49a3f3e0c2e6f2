"""Detects that an array has changed since training began, without reading its data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from pelagos.data_pipelines.foreign.arrays import SourceArray
from pelagos.data_pipelines.foreign.description import Description
from pelagos.data_pipelines.store.schema import DatasetSpec
from pelagos.data_pipelines.store.zarr_view import METADATA_NAMES, filesystem_options

# Listing costs a request per thousand objects of an object store: up to a minute for this number.
MAX_LISTED_OBJECTS = 500_000

logger = logging.getLogger(__name__)


def fingerprint(
    uri: str,
    storage_options: dict[str, Any] | None,
    spec: DatasetSpec,
    arrays: Sequence[SourceArray],
) -> str:
    """SHA-256 over the specification, the arrays' metadata, and each chunk's size and version.

    A version is an object store's ETag; of a local file the time when it was last written, in
    whole seconds (copy with `cp -a` or `rsync -t` to keep it).
    """
    count = sum(math.prod(getattr(a.array, "cdata_shape", (1,))) for a in arrays)
    described: list[Any] = [spec.to_json()]
    for source in arrays:
        described.append([source.path, source.roles, source.array.metadata.to_dict()])
        if count <= MAX_LISTED_OBJECTS:
            described.append(sorted(_objects(uri, source.path, storage_options)))
    if count > MAX_LISTED_OBJECTS:
        logger.warning(
            "%s has %d chunks, too many to list. If its data changes under the same metadata, a "
            "resumed run will not notice",
            uri,
            count,
        )
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def identity_spec(spec: DatasetSpec, description: Description) -> DatasetSpec:
    """The part of a specification that identifies data.

    Units and remarks that the array gives may be understood better one day without a run being
    refused its data.
    """
    units = [f.unit for f in description.fields] or ["1"] * len(spec.fields)
    fields = tuple(
        dataclasses.replace(f, unit=unit) for f, unit in zip(spec.fields, units, strict=True)
    )
    return dataclasses.replace(spec, fields=fields, generator={})


def object_sizes(
    uri: str, storage_options: dict[str, Any] | None, arrays: Sequence[SourceArray]
) -> list[int]:
    """Bytes of each chunk's (or shard's) object that is there."""
    return [size for a in arrays for _, size, _ in _objects(uri, a.path, storage_options)]


def _objects(
    uri: str, path: str, storage_options: dict[str, Any] | None
) -> list[tuple[str, int, str]]:
    """Name below the array, size and version of each chunk's object."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return _files(Path(rest if separator else uri).expanduser() / path)
    options = filesystem_options(scheme, storage_options)
    filesystem, root = fsspec.core.url_to_fs(uri, **options)
    folder = f"{root.rstrip('/')}/{path}".rstrip("/")
    found = filesystem.find(folder, detail=True)
    return [
        (name[len(folder) :], int(info["size"]), str(info.get("ETag", "")))
        for name, info in found.items()
        if name.rpartition("/")[2] not in METADATA_NAMES
    ]


def _files(folder: Path) -> list[tuple[str, int, str]]:
    found = []
    for directory, _, names in os.walk(folder):
        for name in names:
            if name not in METADATA_NAMES:
                path = Path(directory) / name
                status = path.stat()
                place = "/" + path.relative_to(folder).as_posix()
                found.append((place, status.st_size, str(int(status.st_mtime))))
    return found
