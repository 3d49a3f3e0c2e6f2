"""One revision of a dataset at a time: the second caller gets an error that names the holder.

On a local disk the kernel holds the lock and frees it when the process dies. An object store has no
such thing: there it is a small object which only one caller can create, and which stays if that
caller is killed; the message then names the file to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pelagos.data_pipelines.store import Dataset, DatasetError
from pelagos.data_pipelines.store.layout import dumps
from pelagos.data_pipelines.store.manifest import load_manifest
from pelagos.data_pipelines.store.object_store import LocalStore, ObjectStore
from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.files import open_lock_file

LOCK_KEY = ".revision.lock"


@contextlib.contextmanager
def revising(dataset: Dataset) -> Iterator[None]:
    """Hold a dataset while its manifest is replaced.

    Raises:
        DatasetError: another process is revising it, or has done so since `dataset` was opened.
    """
    store = dataset.store
    hold = _hold_file(store) if isinstance(store, LocalStore) else _hold_object(store)
    with hold:
        found = load_manifest(store).fingerprint
        if found != dataset.manifest.fingerprint:
            raise DatasetError(
                f"{store.uri} was revised since it was opened (fingerprint now {found[:16]}…, then "
                f"{dataset.manifest.fingerprint[:16]}…): open it again"
            )
        yield


@contextlib.contextmanager
def _hold_file(store: LocalStore) -> Iterator[None]:
    path = store.path(LOCK_KEY)
    with _locked(path, store.uri) as file:
        file.write(_who())
        file.flush()
        try:
            yield
        finally:
            path.unlink()


def _locked(path: Path, uri: str) -> TextIO:
    """Open and lock a file that its holder removes at the end."""
    while True:
        try:
            file = os.fdopen(open_lock_file(path), "r+")
        except PermissionError as error:
            raise DatasetError(f"cannot revise {uri}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                holder = file.read() or "another process"
            raise DatasetError(f"{holder} is revising {uri}: wait for it") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        file.close()  # its holder removed it between the two calls


@contextlib.contextmanager
def _hold_object(store: ObjectStore) -> Iterator[None]:
    # the key in it makes contents of two callers differ, as `create` asks
    if not store.create(LOCK_KEY, dumps({"by": _who(), "key": uuid.uuid4().hex})):
        told: Any = None
        with contextlib.suppress(ValueError):
            told = parse_json(store.read(LOCK_KEY))
        holder = told.get("by") if isinstance(told, dict) else "another process"
        raise DatasetError(
            f"{holder} is revising {store.uri}: wait for it. If that process was killed, remove "
            f"{store.address(LOCK_KEY)} and try again"
        )
    try:
        yield
    finally:
        store.delete([LOCK_KEY])


def _who() -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{getpass.getuser()} on {socket.gethostname()} (process {os.getpid()}) since {now}"
