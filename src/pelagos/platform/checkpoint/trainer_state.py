"""Permitted contents of the JSON next to the tensors: the keys that a continued run reads."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pelagos.infra.json_text import first_problem
from pelagos.platform.checkpoint.manifest import TRAINER_STATE, CheckpointError


class _Part(BaseModel):
    """Keys of other versions and of other parts are left as they are."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Best(_Part):
    step: int
    loss: float | None = None


class _Validated(_Part):
    step: int
    loss: float


class _Watched(_Part):
    step: int
    loss: float
    since: int
    last: float


class _Mixture(_Part):
    fields: list[str]
    datasets: list[dict[str, Any]] = []
    digests: list[str] = []


class _Streams(_Part):
    seed: int
    mixture: _Mixture


class _Network(_Part):
    name: str
    config: dict[str, Any]


class _Forecaster(_Part):
    model: _Network | None = None
    datasets: list[dict[str, Any]] = []


class _State(_Part):
    run: str = ""
    best: _Best | None = None
    validated: list[_Validated] = []
    watched: _Watched | None = None
    streams: _Streams | None = None
    fresh: list[str] = []
    loss_scale: dict[str, float | int] | None = None
    forecaster: _Forecaster | None = None


def checked_state(values: Any, where: str) -> dict[str, Any]:
    """Return a trainer's state as it is, once it is one.

    Raises:
        CheckpointError: it is none; names the key.
    """
    try:
        _State.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, "the whole")
        raise CheckpointError(
            f"{where}: {TRAINER_STATE} does not come from a training: {problem}"
        ) from error
    return dict(values)


def streams_of(state: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a checkpoint's state of the sample order. Raises CheckpointError: it has none."""
    streams: dict[str, Any] | None = state.get("streams")
    if streams is None:
        raise CheckpointError(
            f"{where}: {TRAINER_STATE} does not record which samples were used, so no run can "
            "continue from it. Its weights can be fine-tuned"
        )
    return streams
