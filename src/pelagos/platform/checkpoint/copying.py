"""Copying a complete checkpoint from one store to another: complete there, or absent."""

import contextlib
import os
import shutil
from pathlib import Path

from pelagos.platform.checkpoint.manifest import MANIFEST, CheckpointError, damaged_files
from pelagos.platform.checkpoint.store import CheckpointStore


def copy_checkpoint(source: CheckpointStore, step: int, target: CheckpointStore) -> None:
    """Copy the checkpoint of `step`, byte for byte; one that is complete in `target` stays.

    On one disk the files are linked, which takes no room: a checkpoint's files are never changed.

    Raises:
        CheckpointError: there is none of that step in `source`, or it is damaged.
        OSError, StorageError: it cannot be written; `target` is as it was.
    """
    if step in [info.step for info in target.complete()]:
        return
    with source.opened(step) as (directory, manifest):
        if damage := damaged_files(directory, manifest.files):
            raise CheckpointError(f"{source.uri} step {step} is damaged: {'; '.join(damage)}")
        staging = target.place.staging(step)
        try:
            names = [file.name for file in manifest.files]
            for name in names:
                _link_or_copy(directory / name, staging / name)
            target.place.upload(step, staging, names)
            target.place.commit(step, staging, (directory / MANIFEST).read_text())
        except BaseException:
            with contextlib.suppress(Exception):
                target.place.discard(step, staging)
            raise


def empty_place(target: CheckpointStore) -> None:
    """Delete every checkpoint of a place that no run continues from yet.

    Files left there by an interrupted attempt must not be taken for those of the next one.
    """
    for info in target.complete():
        target.place.delete(info.step)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)  # of a copy that was killed
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
