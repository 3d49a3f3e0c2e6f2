"""The weights of a run's checkpoint, with the description of their network; no optimizer is read."""

from typing import Any

from torch import Tensor

from pelagos.jobs.weights.trained_description import checked_description
from pelagos.models.low_rank import merged
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, named_step
from pelagos.platform.records.runs import RunDirectory, check_identity
from pelagos.platform.storage_choice import options_for


def trained_weights(
    run: RunDirectory, checkpoint: str = "last", weights: str = "auto", *, merge: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return description, state dict and step of a run's checkpoint; the optimizer is not read.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no such weights.
        RunError: the checkpoint is of another run.
    """
    job = run.job()
    store = CheckpointStore(run.checkpoint_uri, options_for(run.checkpoint_uri, job.storage))
    return store_weights(store, checkpoint, weights, run, merge=merge)


def store_weights(
    store: CheckpointStore,
    checkpoint: str = "last",
    weights: str = "auto",
    run: RunDirectory | None = None,
    *,
    merge: bool = True,
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return description, state dict and step of a checkpoint, low-rank updates merged in if `merge`.

    The description's `weights` says which they are: `ema` for averaged ones, else `model`.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no such weights.
        RunError: it is of another run than `run`.
    """
    step = named_step(store, checkpoint)
    trainer_state = store.trainer_state(step)
    if run is not None:
        check_identity(run, store.uri, step, trainer_state)
    where = f"{store.uri} step {step}"
    description = checked_description(trainer_state.get("forecaster"), where)
    # together: each call fetches and verifies the whole checkpoint
    tensors = store.load_named(step, ("model.",) if weights == "model" else ("model.", "ema."))
    averaged = {n: tensors.pop(n) for n in list(tensors) if n.startswith("ema.")}
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if weights == "ema" and not averaged:
        raise CheckpointError(
            f"{store.uri} has no averaged weights; set ema_decay to train them, or leave weights out"
        )
    state |= {name.removeprefix("ema."): tensor for name, tensor in averaged.items()}
    description["weights"] = "ema" if averaged else "model"
    if merge and (updates := description.get("lora")) is not None:
        state = merged(state, updates["alpha"])
    return description, state, step
