"""Where a dataset is written before it takes its place, so that no finished one is lost early.

A new dataset is written in its place: without a manifest it refuses to open. One that replaces
another on a local disk is written to a sibling folder `NAME.pelagos-new`; when it is complete the
old folder is renamed to `NAME.pelagos-old`, the new one takes the name, and the old one is
deleted. If the machine stops between the two renames, `resume_dataset` finds `NAME.pelagos-new`
complete, and its `finalize` puts it in place. An object store cannot rename: there, what is
replaced is deleted first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.layout import GROUP_KEY, MANIFEST_KEY, SPEC_KEY
from pelagos.data_pipelines.store.object_store import LocalStore, ObjectStore, open_store
from pelagos.data_pipelines.store.schema import FORMAT_NAME
from pelagos.infra.storage.files import sync_directory
from pelagos.infra.storage.local import TEMPORARY_MARK

NEW_SUFFIX = ".pelagos-new"
OLD_SUFFIX = ".pelagos-old"


def prepare(uri: str, overwrite: bool, storage_options: dict[str, Any] | None) -> str:
    """Make room for a new dataset at `uri` and return where to write it.

    Raises:
        FileExistsError: something is there, and `overwrite` is false or it is not a dataset.
    """
    store = open_store(uri, storage_options)
    state = _state(store)
    if state == "nothing":
        return uri
    if state == "foreign":
        raise FileExistsError(
            f"{uri} holds something other than a Pelagos dataset: use another uri"
        )
    if not overwrite:
        if state == "unfinished":
            held, hint = "an unfinished", "continue it with resume_dataset"
        else:
            held, hint = "a finished", "choose another uri"
        raise FileExistsError(f"{uri} already holds {held} dataset: {hint}, or overwrite it")
    if isinstance(store, LocalStore):
        if state == "unfinished":
            shutil.rmtree(store.root)
            return uri
        new = _sibling(store.root, NEW_SUFFIX)
        shutil.rmtree(new, ignore_errors=True)
        return str(new)
    keys = sorted(store.sizes())
    if MANIFEST_KEY in keys:  # first, so that a half-deleted dataset never opens
        store.delete([MANIFEST_KEY])
    store.delete([key for key in keys if key != MANIFEST_KEY])
    return uri


def unfinished_root(uri: str, storage_options: dict[str, Any] | None) -> str:
    """Where the unfinished dataset for `uri` is.

    Raises:
        ValueError: there is none.
    """
    store = open_store(uri, storage_options)
    if isinstance(store, LocalStore):
        new = _sibling(store.root, NEW_SUFFIX)
        if (new / SPEC_KEY).exists():
            return str(new)
    state = _state(store)
    if state != "unfinished":
        raise ValueError(f"{uri} holds no unfinished dataset (found: {state}): create it")
    return uri


def interrupted_replacement(store: ObjectStore) -> str | None:
    """Advice if a dataset's replacement stopped between its two renames; None if none did."""
    if not isinstance(store, LocalStore):
        return None
    new, old = _sibling(store.root, NEW_SUFFIX), _sibling(store.root, OLD_SUFFIX)
    if not (new.exists() and old.exists()):
        return None
    return (
        f"the replacement of {store.uri} was interrupted: the new dataset is complete at {new}, "
        f"the old one at {old}. Run the job that replaces it again, or rename either to "
        f"{store.root.name}"
    )


def finish(uri: str, root_uri: str) -> None:
    """Put a complete dataset in its place, and remove the remains of killed writers."""
    if "://" in uri and not uri.startswith("file://"):
        return
    store = open_store(uri)
    assert isinstance(store, LocalStore)
    if root_uri == uri:
        _remove_partial_files(store.root)
        return
    place, new = store.root, Path(root_uri)
    _remove_partial_files(new)
    old = _sibling(place, OLD_SUFFIX)
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    new.rename(place)
    sync_directory(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _state(store: ObjectStore) -> str:
    """`nothing`, `finished`, `unfinished` or `foreign`."""
    for key, state in (
        (MANIFEST_KEY, "finished"),
        (SPEC_KEY, "unfinished"),
        (GROUP_KEY, "foreign"),
    ):
        try:
            content = store.read(key)
        except ObjectMissingError:
            continue
        is_ours = key != MANIFEST_KEY or f'"{FORMAT_NAME}"'.encode() in content
        return state if is_ours else "foreign"
    if isinstance(store, LocalStore):
        is_used = store.root.exists() and (
            not store.root.is_dir() or next(store.root.iterdir(), None) is not None
        )
        return "foreign" if is_used else "nothing"
    return "foreign" if store.sizes() else "nothing"


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove_partial_files(root: Path) -> None:
    for path in root.rglob(f"*{TEMPORARY_MARK}*"):
        path.unlink(missing_ok=True)
