"""Settings of optimizers and schedules: the sections `optimizer` and `schedule` of a job file.

They are protocols, so that the tables of optimizers and schedules lie below the configuration,
which looks names up in them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class ParameterGroupSettings(Protocol):
    """Settings of the parameters whose name matches a pattern (`optimizer.groups`)."""

    @property
    def pattern(self) -> str: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def weight_decay(self) -> float | None: ...
    @property
    def frozen_until_step(self) -> int: ...


class OptimizerSettings(Protocol):
    """The section `optimizer`; its keys are described in docs/job-file.md."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def groups(self) -> Sequence[ParameterGroupSettings]: ...
    @property
    def layer_decay(self) -> float: ...


class ScheduleSettings(Protocol):
    """The section `schedule`."""

    @property
    def name(self) -> str: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def final_lr_fraction(self) -> float: ...
