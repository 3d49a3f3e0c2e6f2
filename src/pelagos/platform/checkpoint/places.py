"""Places of checkpoints: a local directory or an object-store prefix, behind a few operations.

Both keep one promise: a checkpoint whose `commit` is unfinished is not among the `complete` ones.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from pelagos.infra.storage.files import replace_durably, sync_directory
from pelagos.infra.storage.remote import S3_SCHEMES, RemoteStore, StorageMissingError
from pelagos.platform.checkpoint.manifest import (
    MANIFEST,
    CheckpointInfo,
    directory_name,
    parse_manifest,
    step_of,
)

UNFINISHED_PREFIX = ".unfinished-"
# Names that nothing lists as checkpoints, followed by the step's directory name and a number.
DAMAGED_PREFIX = "damaged-"
REMNANT_PREFIX = "remnant-"
# Putting together the parts of a large upload takes a store longer than a read.
READ_TIMEOUT_SECONDS = 60.0


class Place(Protocol):
    """Storage of checkpoints."""

    def complete(self) -> list[CheckpointInfo]:
        """Return the complete checkpoints, oldest first."""

    def staging(self, step: int) -> Path:
        """Return a local directory for this rank's files of an unfinished checkpoint."""

    def upload(self, step: int, staging: Path, names: list[str]) -> None:
        """Bring this rank's files where they belong (nothing to do on a shared disk)."""

    def commit(self, step: int, staging: Path, manifest: str) -> None:
        """Make the checkpoint complete; called by one rank after every upload."""

    def discard(self, step: int, staging: Path) -> None:
        """Remove the remains of an abandoned save."""

    def fetch(self, step: int, names: Collection[str] | None = None) -> tuple[Path, bool]:
        """Return a local directory with the checkpoint, and whether it is a temporary copy.

        Given `names`, only these files and the manifest need to be there.
        """

    def sizes(self, step: int) -> dict[str, int]:
        """Return the size of every file of a checkpoint."""

    def delete(self, step: int) -> None:
        """Remove a complete checkpoint, its manifest first."""

    def set_aside(self, step: int) -> str:
        """Move a damaged checkpoint to a name that nothing uses; return its new place."""

    def make_way(self, step: int) -> None:
        """Take away what an interrupted save or deletion left of a step; called by one rank."""


class LocalPlace:
    """Checkpoints on a disk that every rank sees: written under a temporary name, then renamed."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).absolute()

    def complete(self) -> list[CheckpointInfo]:
        found = []
        for path in sorted(self.root.glob("step-*")):
            step = step_of(path.name)
            if step is not None and (path / MANIFEST).exists():
                found.append(CheckpointInfo(step, str(path)))
        return found

    def staging(self, step: int) -> Path:
        path = self.root / f"{UNFINISHED_PREFIX}{directory_name(step)}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def upload(self, step: int, staging: Path, names: list[str]) -> None:
        pass

    def commit(self, step: int, staging: Path, manifest: str) -> None:
        replace_durably(staging / MANIFEST, manifest.encode())
        self.make_way(step)
        staging.rename(self.root / directory_name(step))
        sync_directory(self.root)

    def discard(self, step: int, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, step: int, names: Collection[str] | None = None) -> tuple[Path, bool]:
        return self.root / directory_name(step), False

    def sizes(self, step: int) -> dict[str, int]:
        directory = self.root / directory_name(step)
        return {path.name: path.stat().st_size for path in directory.iterdir()}

    def delete(self, step: int) -> None:
        directory = self.root / directory_name(step)
        (directory / MANIFEST).unlink()
        shutil.rmtree(directory, ignore_errors=True)

    def set_aside(self, step: int) -> str:
        return str(self._renamed(step, DAMAGED_PREFIX))

    def make_way(self, step: int) -> None:
        directory = self.root / directory_name(step)
        if os.path.lexists(directory) and not (directory / MANIFEST).exists():
            self._renamed(step, REMNANT_PREFIX)

    def _renamed(self, step: int, prefix: str) -> Path:
        """Rename a step's directory to the first free name with the prefix; return that."""
        number = 1
        while os.path.lexists(target := self.root / f"{prefix}{directory_name(step)}-{number}"):
            number += 1
        (self.root / directory_name(step)).rename(target)
        sync_directory(self.root)
        return target


class RemotePlace:
    """Checkpoints under an object-store prefix: objects first, the manifest object last."""

    def __init__(self, uri: str, options: dict[str, Any]) -> None:
        config = {"read_timeout": READ_TIMEOUT_SECONDS, **options.get("config_kwargs", {})}
        is_s3 = uri.partition("://")[0] in S3_SCHEMES
        self.store = RemoteStore(uri, {**options, "config_kwargs": config} if is_s3 else options)

    def complete(self) -> list[CheckpointInfo]:
        found = []
        for key in sorted(self.store.sizes()):
            directory, _, name = key.rpartition("/")
            step = step_of(directory)
            if name == MANIFEST and step is not None:
                found.append(CheckpointInfo(step, self.store.address(directory)))
        return found

    def staging(self, step: int) -> Path:
        return Path(tempfile.mkdtemp(prefix="pelagos-checkpoint-"))

    def upload(self, step: int, staging: Path, names: list[str]) -> None:
        for name in names:
            self.store.upload(f"{directory_name(step)}/{name}", staging / name)

    def commit(self, step: int, staging: Path, manifest: str) -> None:
        self.store.write(f"{directory_name(step)}/{MANIFEST}", manifest.encode())
        shutil.rmtree(staging, ignore_errors=True)

    def discard(self, step: int, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        uploaded = self.store.sizes(directory_name(step))
        if not any(key.endswith(f"/{MANIFEST}") for key in uploaded):
            self.store.delete(list(uploaded))

    def fetch(self, step: int, names: Collection[str] | None = None) -> tuple[Path, bool]:
        local = Path(tempfile.mkdtemp(prefix="pelagos-checkpoint-"))
        try:
            self.download(step, local, names)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise
        return local, True

    def download(self, step: int, local: Path, names: Collection[str] | None = None) -> None:
        """Bring the manifest and the files that it lists, or those of `names`, into a directory.

        The reader reports missing ones, because it knows which exist.
        """
        with contextlib.suppress(StorageMissingError):
            manifest = self.store.read(f"{directory_name(step)}/{MANIFEST}").decode(
                errors="replace"
            )
            (local / MANIFEST).write_text(manifest)
            # names of the manifest become paths here: only after it was checked
            address = self.store.address(directory_name(step))
            for name in [record.name for record in parse_manifest(manifest, address).files]:
                if names is None or name in names:
                    with contextlib.suppress(StorageMissingError):
                        self.store.download(f"{directory_name(step)}/{name}", local / name)

    def sizes(self, step: int) -> dict[str, int]:
        found = self.store.sizes(directory_name(step))
        return {key.rpartition("/")[2]: size for key, size in found.items()}

    def delete(self, step: int) -> None:
        self.store.delete([f"{directory_name(step)}/{MANIFEST}"])
        self.store.delete(list(self.store.sizes(directory_name(step))))

    def set_aside(self, step: int) -> str:
        # Whole in the new place before the manifest leaves the old one: an interruption leaves
        # the checkpoint listed, or remnants that the next save of the step takes away.
        name = directory_name(step)
        number = 1
        while self.store.sizes(target := f"{DAMAGED_PREFIX}{name}-{number}"):
            number += 1
        keys = list(self.store.sizes(name))
        for key in keys:
            self.store.copy(key, f"{target}/{key.removeprefix(f'{name}/')}")
        self.store.delete([f"{name}/{MANIFEST}"])
        self.store.delete(keys)
        return self.store.address(target)

    def make_way(self, step: int) -> None:
        name = directory_name(step)
        found = self.store.sizes(name)
        if found and f"{name}/{MANIFEST}" not in found:
            self.store.delete(list(found))
