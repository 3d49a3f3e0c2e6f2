"""Whether a checkpoint fits the architecture that loads it, and the permitted differences."""

import re
from collections.abc import Sequence

from torch import Tensor

from pelagos.platform.checkpoint.manifest import CheckpointError

SHOWN_DIFFERENCES = 10


def match_tensors(
    stored: dict[str, tuple[int, ...]],
    tensors: dict[str, Tensor],
    may_lack: Sequence[str],
    uri: str,
) -> tuple[dict[str, Tensor], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the tensors to read, and those kept or left.

    One without elements must be in both, of the same shape; there is nothing to read of it.

    Raises:
        CheckpointError: names or shapes differ otherwise; the first ten are listed.
    """
    wanted = {name: tuple(t.shape) for name, t in tensors.items()}
    missing = [n for n in wanted if n not in stored]
    kept = [n for n in missing if any(re.search(p, _parameter(n)) for p in may_lack)]
    surplus = [n for n in stored if n not in wanted]
    frozen = [
        n for n in surplus if not n.startswith("model.") and f"model.{_parameter(n)}" in wanted
    ]
    newly_trained = [n for n in missing if n not in kept and f"model.{_parameter(n)}" in stored]
    differences = [f"{n}: absent from the checkpoint" for n in missing if n not in kept]
    differences += [f"{n}: absent from the model" for n in surplus if n not in frozen]
    differences += [
        f"{n}: {list(stored[n])} in the checkpoint, {list(wanted[n])} in the model"
        for n in wanted
        if n in stored and stored[n] != wanted[n]
    ]
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        advice = "Use the model configuration of the checkpoint."
        if newly_trained:
            advice = (
                "Frozen parameters have no such state, nor have parameters whose averaged weights "
                "were not kept. Name them in checkpoint.new_parameters to start it afresh."
            )
        raise CheckpointError(
            f"{uri} holds another architecture: {len(differences)} differences, e.g. {shown}. "
            f"{advice}"
        )
    read = {n: t for n, t in tensors.items() if n in stored and t.numel()}
    return read, (tuple(kept), tuple(frozen))


def _parameter(name: str) -> str:
    """Return the parameter that a tensor of the state belongs to.

    >>> _parameter("optimizer.head.weight.exp_avg"), _parameter("model.head.weight")
    ('head.weight', 'head.weight')
    """
    section, _, rest = name.partition(".")
    return rest.rpartition(".")[0] if section == "optimizer" else rest
