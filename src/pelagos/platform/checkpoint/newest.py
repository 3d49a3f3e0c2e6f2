"""The newest checkpoint that is whole: where a training continues if later ones are damaged.

Only proven damage is passed over. Storage out of reach, a newer format, another run or another
architecture raise as they are. Nothing is renamed before a whole checkpoint was found, so that a
training whose checkpoints are all damaged never takes itself for a new one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pelagos.platform.checkpoint.manifest import (
    TRAINER_STATE,
    CheckpointError,
    damaged_error,
    damaged_files,
)
from pelagos.platform.checkpoint.node_copy import raise_together
from pelagos.platform.checkpoint.store import CheckpointStore, LoadReport


@dataclass(frozen=True)
class SetAside:
    """A damaged checkpoint that was renamed: its step, its damage, and where it is now."""

    step: int
    damage: str
    where: str


@dataclass(frozen=True)
class Newest:
    """The checkpoint that was loaded, and what there is around it."""

    step: int
    tensors: dict[str, Tensor]
    report: LoadReport
    steps: tuple[int, ...]
    """Of all checkpoints that are left, this one included."""
    set_aside: tuple[SetAside, ...] = ()


def load_newest(
    store: CheckpointStore,
    make_tensors: Callable[[], dict[str, Tensor]],
    may_lack: Sequence[str] | Callable[[dict[str, Any]], Sequence[str]] = (),
) -> Newest | None:
    """Load the newest checkpoint that is whole into `make_tensors()`; all ranks together.

    Damaged newer ones are set aside. None: there is no checkpoint, damaged or not. A whole newest
    one is read and verified once, as by `CheckpointStore.load`.

    Raises:
        CheckpointError: each is damaged; or the newest is none that this training can load.
        StorageError, OSError: they cannot be read, or a damaged one cannot be set aside.
    """
    steps = _steps(store)
    damaged: dict[int, str] = {}
    tensors = make_tensors() if steps else {}
    for step in reversed(steps):
        try:
            report = store.load(step, tensors, may_lack)
        except CheckpointError as error:
            if not error.damage:
                raise
            damaged[step] = error.damage
        else:
            aside = _set_aside(store, damaged)
            return Newest(step, tensors, report, tuple(s for s in steps if s not in damaged), aside)
    if damaged:
        raise _all_damaged(store, damaged)
    return None


def newest_state(store: CheckpointStore) -> tuple[int, dict[str, Any]] | None:
    """Return step and JSON of the newest checkpoint whose manifest and JSON are whole, or None.

    Works in one process, reads no tensors and renames nothing.

    Raises:
        CheckpointError: there are checkpoints, and none such.
        StorageError, OSError: they cannot be read.
    """
    damaged: dict[int, str] = {}
    for info in reversed(store.complete()):
        try:
            with store.opened(info.step, names=(TRAINER_STATE,)) as (directory, manifest):
                of_json = [file for file in manifest.files if file.name == TRAINER_STATE]
                if damage := damaged_files(directory, of_json):
                    raise damaged_error(damage[0], damage[0])
            return info.step, store.trainer_state(info.step)
        except CheckpointError as error:
            if not error.damage:
                raise
            damaged[info.step] = error.damage
    if damaged:
        raise _all_damaged(store, damaged)
    return None


def _steps(store: CheckpointStore) -> list[int]:
    """Return the steps of the complete checkpoints, as rank 0 finds them."""
    group = store.all_ranks()
    failure: Exception | None = None
    steps: list[int] = []
    if group.rank == 0:
        try:
            steps = [info.step for info in store.complete()]
        except Exception as error:  # for every rank
            failure = error
    raise_together(failure, group)
    return group.from_rank_0(steps)


def _set_aside(store: CheckpointStore, damaged: dict[int, str]) -> tuple[SetAside, ...]:
    if not damaged:
        return ()
    group = store.all_ranks()
    failure: Exception | None = None
    aside: list[SetAside] = []
    if group.rank == 0:
        try:
            for step, damage in damaged.items():
                aside.append(SetAside(step, damage, store.place.set_aside(step)))
        except Exception as error:  # for every rank
            failure = error
    raise_together(failure, group)
    return tuple(group.from_rank_0(aside))


def _all_damaged(store: CheckpointStore, damaged: dict[int, str]) -> CheckpointError:
    listed = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
    return damaged_error(
        f"{store.uri}: every checkpoint is damaged ({listed}). Nothing was loaded or moved. Restore "
        "one of them from a copy, then resume the run; to start from step 0 again, start a new run.",
        listed,
    )
