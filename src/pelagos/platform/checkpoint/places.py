"""Where checkpoints stand: a local directory or an object-store prefix, behind five operations.

Both keep one promise: what `commit` has not finished is not among the `complete` ones.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from pelagos.infra.object_store import explained, open_filesystem
from pelagos.platform.checkpoint.manifest import MANIFEST, CheckpointInfo, directory_name, step_of

UNFINISHED_PREFIX = ".unfinished-"


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
        """Remove what an abandoned save left behind."""

    def fetch(self, step: int) -> tuple[Path, bool]:
        """Return a local directory with the checkpoint, and whether it is a temporary copy."""

    def delete(self, step: int) -> None:
        """Remove a complete checkpoint, its manifest first."""


class LocalPlace:
    """Checkpoints on a disk that every rank sees: written beside, then renamed."""

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
        write_durably(staging / MANIFEST, manifest)
        sync_directory(staging)
        staging.rename(self.root / directory_name(step))
        sync_directory(self.root)

    def discard(self, step: int, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, step: int) -> tuple[Path, bool]:
        return self.root / directory_name(step), False

    def delete(self, step: int) -> None:
        directory = self.root / directory_name(step)
        (directory / MANIFEST).unlink()
        shutil.rmtree(directory, ignore_errors=True)


class RemotePlace:
    """Checkpoints under an object-store prefix: objects first, the manifest object last."""

    def __init__(self, uri: str, options: dict[str, Any]) -> None:
        self.uri = uri.rstrip("/")
        self.options = options
        self.filesystem, self.prefix = open_filesystem(self.uri, options)

    def complete(self) -> list[CheckpointInfo]:
        with explained(self.uri, self.options):
            self.filesystem.invalidate_cache()
            found = []
            for path in sorted(self.filesystem.glob(f"{self.prefix}/step-*/{MANIFEST}")):
                step = step_of(path.split("/")[-2])
                if step is not None:
                    found.append(CheckpointInfo(step, f"{self.uri}/{directory_name(step)}"))
            return found

    def staging(self, step: int) -> Path:
        return Path(tempfile.mkdtemp(prefix="pelagos-checkpoint-"))

    def upload(self, step: int, staging: Path, names: list[str]) -> None:
        with explained(self.uri, self.options):
            for name in names:
                target = f"{self.prefix}/{directory_name(step)}/{name}"
                self.filesystem.put_file(str(staging / name), target)

    def commit(self, step: int, staging: Path, manifest: str) -> None:
        with explained(self.uri, self.options):
            target = f"{self.prefix}/{directory_name(step)}/{MANIFEST}"
            self.filesystem.pipe_file(target, manifest.encode())
        shutil.rmtree(staging, ignore_errors=True)

    def discard(self, step: int, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, step: int) -> tuple[Path, bool]:
        local = Path(tempfile.mkdtemp(prefix="pelagos-checkpoint-"))
        with explained(self.uri, self.options):
            directory = f"{self.prefix}/{directory_name(step)}"
            manifest = self.filesystem.cat_file(f"{directory}/{MANIFEST}").decode()
            (local / MANIFEST).write_text(manifest)
            for record in json.loads(manifest)["files"]:
                source = f"{directory}/{record['name']}"
                if self.filesystem.exists(source):  # a missing one is reported by verify_files
                    self.filesystem.get_file(source, str(local / record["name"]))
        return local, True

    def delete(self, step: int) -> None:
        with explained(self.uri, self.options):
            directory = f"{self.prefix}/{directory_name(step)}"
            self.filesystem.rm_file(f"{directory}/{MANIFEST}")
            self.filesystem.rm(directory, recursive=True)


def write_durably(path: Path, text: str) -> None:
    """Write a file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
