"""Opening whatever a uri holds: a Pelagos dataset, or a Zarr array of another writer."""

from __future__ import annotations

import os
from typing import Any, Protocol

from fsspec import available_protocols

from pelagos.data_pipelines.foreign.dataset import open_foreign
from pelagos.data_pipelines.foreign.description import Description
from pelagos.data_pipelines.store import CacheSettings, DatasetError, open_dataset
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.layout import SPEC_KEY
from pelagos.data_pipelines.store.object_store import ObjectStore, open_store
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import FORMAT_NAME
from pelagos.data_pipelines.store.zarr_view import METADATA_NAMES
from pelagos.infra.json_text import parse_json
from pelagos.registry import Registry


class Opener(Protocol):
    """Opens the dataset at a uri of its scheme.

    Raises:
        DatasetError: it cannot; the message gives the remedy.
    """

    def __call__(
        self, uri: str, storage_options: dict[str, Any], cache: CacheSettings | None
    ) -> ReadableDataset: ...


OPENERS: Registry[Opener] = Registry("scheme of datasets", {})
"""Schemes (`lab` of `lab://…`) whose datasets a plugin opens; all others are Zarr, on a disk or in an
object store."""


def open_readable(
    uri: str | os.PathLike[str],
    storage_options: dict[str, Any] | None = None,
    description: Description | None = None,
    cache: CacheSettings | None = None,
) -> ReadableDataset:
    """Open a dataset, no matter which tool wrote it.

    Args:
        description: properties that a foreign array lacks; rejected for a Pelagos dataset,
            which states them all.
        cache: of a remote Pelagos dataset on this node; other arrays have none.

    Raises:
        DatasetError: it cannot be opened; the message gives the remedy.
    """
    uri = os.fspath(uri)
    if (scheme := uri.partition("://")[0]) in OPENERS:
        if description is not None:
            raise DatasetError(
                f"{uri} is opened by {OPENERS.origin(scheme)}, which describes it: remove its "
                f"description"
            )
        return OPENERS[scheme](uri, dict(storage_options or {}), cache)
    _require_known_scheme(uri)
    try:
        dataset = open_dataset(uri, storage_options, cache)
    except DatasetError as error:
        is_absent = isinstance(error.__cause__, ObjectMissingError)  # of the manifest
        if is_absent and is_foreign(open_store(uri, storage_options)):
            return open_foreign(uri, storage_options, description)
        raise
    if description is not None:
        dataset.close()
        raise DatasetError(
            f"{uri} is a Pelagos dataset, which describes itself: remove its description"
        )
    return dataset


def _require_known_scheme(uri: str) -> None:
    """Raise DatasetError for a scheme that neither a plugin nor fsspec opens."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme not in available_protocols():
        raise DatasetError(
            f"{uri}: nothing opens {scheme}://; schemes of plugins: {OPENERS.listed() or 'none'}. "
            f"Check the address, name the plugin (`plugins` of a job, --plugin MODULE), or install "
            f"the fsspec package for this scheme"
        )


def require_stored(uri: str) -> None:
    """Raise DatasetError for a dataset that a plugin opens: this concerns its shards, or its arrays."""
    if (scheme := uri.partition("://")[0]) in OPENERS:
        raise DatasetError(
            f"{uri} is opened by {OPENERS.origin(scheme)}, and only that plugin knows where it is "
            f"stored. Name a directory or an object store's prefix with a dataset"
        )


def is_foreign(store: ObjectStore) -> bool:
    """Whether there is Zarr metadata that is not of a Pelagos dataset without its manifest."""
    if _read(store, SPEC_KEY) is not None:
        return False
    for name in METADATA_NAMES:
        content = _read(store, name)
        if content is not None:
            try:
                return bool(parse_json(content).get("attributes", {}).get("format") != FORMAT_NAME)
            except (ValueError, AttributeError) as error:
                raise DatasetError(f"{store.address(name)} is damaged ({error})") from error
    return False


def _read(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.read(key)
    except ObjectMissingError:
        return None
