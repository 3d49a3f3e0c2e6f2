"""Which checkpoint `last`, `best` or a number means: decided once, for every verb."""

from pelagos.platform.checkpoint.manifest import CheckpointError
from pelagos.platform.checkpoint.store import CheckpointStore


def named_step(store: CheckpointStore, which: str) -> int:
    """Return the step of a complete checkpoint: `last`, `best`, or its number.

    Raises:
        CheckpointError: no checkpoint has that name; `best` never falls back to another one.
    """
    steps = [info.step for info in store.complete()]
    if not steps:
        raise CheckpointError(f"{store.uri} holds no complete checkpoint yet")
    if which == "last":
        return steps[-1]
    listed = ", ".join(map(str, steps))
    if which == "best":
        told = store.trainer_state(steps[-1]).get("best")
        if told is None:
            raise CheckpointError(
                f"{store.uri} has no best checkpoint: no saved step was validated. Make "
                "validation.every_steps a multiple of checkpoint.every_steps, or take last or one "
                f"of {listed}"
            )
        best = int(told["step"])
        if best not in steps:
            raise CheckpointError(
                f"{store.uri}: the best checkpoint, at step {best}, was not kept "
                f"(checkpoint.keep_best). Take last or one of {listed}"
            )
        return best
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise CheckpointError(
        f"{store.uri}: checkpoint {which!r}: expected last, best or one of {listed}"
    )
