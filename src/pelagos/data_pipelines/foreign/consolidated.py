"""Consolidated metadata of a Zarr hierarchy that no longer matches its arrays.

zarr and xarray believe `.zmetadata` (version 2) or the copy in the root's `zarr.json` (version 3)
without looking further. Where arrays grew after it was written, trajectories or whole arrays would
silently be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import zarr

from pelagos.data_pipelines.store.errors import DatasetError

_ADVICE = "write it anew: zarr.consolidate_metadata(STORE)"


def require_current(root: zarr.Group | zarr.Array[Any], paths: Iterable[str], uri: str) -> None:
    """Compare consolidated metadata with that of the arrays themselves.

    Args:
        paths: the arrays that are used; costs one small read each, and a listing.

    Raises:
        DatasetError: they differ; file, array and the index from which data would be left out.
    """
    if not isinstance(root, zarr.Group) or root.metadata.consolidated_metadata is None:
        return
    for path in paths:
        if path:
            _require_equal(root, path, uri)
    here = _names(root)
    there = _names(_unconsolidated(root)) if here is not None else None
    if here is not None and there is not None and here != there:
        left_out, gone = sorted(there - here), sorted(here - there)
        what = [f"leaves out {', '.join(left_out)}"] if left_out else []
        what += [f"names {', '.join(gone)}, which do not exist"] if gone else []
        raise DatasetError(f"{uri}: its consolidated metadata {' and '.join(what)}; {_ADVICE}")


def _require_equal(root: zarr.Group, path: str, uri: str) -> None:
    said = root[path]
    real = _unconsolidated(root).get(path)
    if real is None or not isinstance(said, zarr.Array) or not isinstance(real, zarr.Array):
        return  # some writers keep metadata in the consolidated place alone
    if said.shape != real.shape:
        axis = next(
            (i for i, (a, b) in enumerate(zip(said.shape, real.shape, strict=False)) if a != b), 0
        )
        first = min(said.shape[axis], real.shape[axis]) if said.shape and real.shape else 0
        raise DatasetError(
            f"{uri}, array {path!r}: its consolidated metadata gives shape {said.shape}, the array "
            f"itself {real.shape}; they differ from index {first} of axis {axis} on. The "
            f"consolidated metadata is out of date; {_ADVICE}"
        )
    mine, theirs = _plain(said), _plain(real)
    changed = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
    if changed:
        key = changed[0]
        raise DatasetError(
            f"{uri}, array {path!r}: its consolidated metadata gives {key} = {mine.get(key)}, the "
            f"array itself {theirs.get(key)}. The consolidated metadata is out of date; {_ADVICE}"
        )


def _unconsolidated(root: zarr.Group) -> zarr.Group:
    return zarr.open_group(
        root.store_path, mode="r", use_consolidated=False, zarr_format=root.metadata.zarr_format
    )


def _names(root: zarr.Group) -> set[str] | None:
    """Arrays right below a group; None where the store cannot list (plain HTTP)."""
    try:
        return {name for name, _ in root.arrays()}
    except (NotImplementedError, OSError, RuntimeError):
        return None


def _plain(array: zarr.Array[Any]) -> dict[str, str]:
    """Metadata in comparable form: NaN equals NaN."""
    return {
        key: json.dumps(value, sort_keys=True, default=str)
        for key, value in array.metadata.to_dict().items()
    }
