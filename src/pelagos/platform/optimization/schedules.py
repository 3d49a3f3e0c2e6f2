"""Curves of the learning rate by name: pure functions of the step."""

import math
from collections.abc import Callable

from pelagos.platform.optimization.settings import ScheduleSettings
from pelagos.registry import Registry

Curve = Callable[[float, ScheduleSettings], float]
"""The share of the peak rate at a progress from 0 (the warm-up's end) to 1 (`total_steps`)."""


def cosine(progress: float, schedule: ScheduleSettings) -> float:
    """Half a cosine down to `final_lr_fraction` (Loshchilov and Hutter, SGDR, 2017, eq. 5)."""
    low = schedule.final_lr_fraction
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float, schedule: ScheduleSettings) -> float:
    """The peak rate to the end."""
    return 1.0


def range_test(progress: float, schedule: ScheduleSettings) -> float:
    """Rise by a constant factor per step from `final_lr_fraction` of the peak rate to all of it.

    For range tests (`pelagos tune-lr`); a fraction of 0 begins at a millionth.
    """
    low = schedule.final_lr_fraction or 1e-6
    return math.pow(low, 1.0 - progress)


SCHEDULES: Registry[Curve] = Registry(
    "schedule", {"cosine": cosine, "constant": constant, "range_test": range_test}
)


def lr_factor(step: int, schedule: ScheduleSettings) -> float:
    """Return the share of the peak learning rate used in `step` (counted from 0).

    Linear over `warmup_steps`: step k takes (k + 1) / warmup_steps, so that the first step moves and
    the last one of the warm-up has the whole rate. Then the curve of the schedule's name, up to
    `total_steps`.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    span = schedule.total_steps - schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / span)
    return SCHEDULES[schedule.name](progress, schedule)
