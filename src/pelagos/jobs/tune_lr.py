"""`pelagos tune-lr`: a range test of the learning rate, with a picture and a suggestion.

The rate rises from step to step by a constant factor, from so little that nothing moves to so much that
the loss explodes. Between the two it falls, and a good peak rate is where it falls fastest
(Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3).
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from pelagos.evaluation.pages.figures.lr_range_figure import write_figure
from pelagos.infra.storage.files import below, replace_durably
from pelagos.jobs import pretrain
from pelagos.jobs.training.checking import checked
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import RunDirectory

RECORD, PICTURE = "lr_range.json", "lr_range.png"
SMOOTHING = 0.03  # width of the average over steps, as a share of their number
EXPLODED = 2.0  # times the first loss: nothing is read off above
LEAST_STEPS = 20

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        suggested: rate at which the smoothed loss falls fastest.
        lowest: rate at which the smoothed loss is lowest; a peak rate should be well below.
        exploded: first rate at which the loss exceeded twice its first value, or was not finite.
        rates, losses, smoothed: of each step, before it exploded.
    """

    suggested: float
    lowest: float
    exploded: float | None
    rates: list[float]
    losses: list[float]
    smoothed: list[float]


@dataclass(frozen=True)
class Result:
    """A range test, and where it is recorded."""

    found: RangeTest
    record: Path
    picture: Path


def run(
    job: TrainingJob,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    console: Console | None = None,
) -> Result:
    """Train a copy of the job for `steps` steps, the rate rising from `low` to `high`.

    It runs in this process, as the run NAME-lr-range, whose directory keeps the record and the picture.
    The same job gives the same result.

    Raises:
        ConfigError: the job cannot run as written.
        ValueError: the range or the number of steps makes no test; nothing falls in that range.
        RunError: a run of that name exists that is no range test.
    """
    if isinstance(job, FinetuneJob):
        raise ValueError(
            "tune-lr takes a pretrain job; a fine-tuning usually needs a tenth of its rate"
        )
    if not 0 < low < high:
        raise ValueError(f"the rates must rise: got {low:g} to {high:g}")
    if steps < LEAST_STEPS:
        raise ValueError(f"a range test needs {LEAST_STEPS} steps or more, got {steps}")
    test = _as_range_test(job, low, high, steps)
    directory = _free_directory(test)
    result = pretrain.start(checked(test), console or HarmlessConsole())
    records = RunDirectory.open(test.runs_dir, test.name).metrics()
    cause = result.outcome.cause
    if not records:
        raise ValueError(f"the range test took no step: {cause or 'the run ended at once'}")
    found = read_off(
        np.array([r["lr"] for r in records]), np.array([r["loss"] for r in records], float)
    )
    record, picture = directory / RECORD, directory / PICTURE
    replace_durably(record, json.dumps(asdict(found), indent=1).encode())
    write_figure(found.rates, found.losses, found.smoothed, found.suggested, found.lowest, picture)
    return Result(found, record, picture)


def read_off(rates: Array, losses: Array) -> RangeTest:
    """Return what the losses `[step]` at rising rates `[step]` say.

    Raises:
        ValueError: the loss falls nowhere.
    """
    limit = EXPLODED * losses[0]
    bad = np.flatnonzero(~(losses <= limit))
    end = int(bad[0]) if bad.size else len(losses)
    if end < LEAST_STEPS // 2:
        raise ValueError(
            f"the loss exploded after {end} steps, at a rate of {rates[max(end - 1, 0)]:.1e}: begin "
            f"lower (--low)"
        )
    smoothed = smooth(losses[:end], max(1.0, SMOOTHING * len(losses)))
    slope = np.gradient(smoothed, np.log(rates[:end]))
    lowest = int(np.argmin(smoothed))
    if lowest == 0 or slope[: lowest + 1].min() >= 0:
        raise ValueError(
            f"the loss falls at no rate from {rates[0]:.1e} to {rates[end - 1]:.1e}: try another range "
            f"(--low, --high) or more steps"
        )
    steepest = int(np.argmin(slope[: lowest + 1]))
    return RangeTest(
        suggested=float(rates[steepest]),
        lowest=float(rates[lowest]),
        exploded=float(rates[end]) if end < len(rates) else None,
        rates=rates[:end].tolist(),
        losses=losses[:end].tolist(),
        smoothed=smoothed.tolist(),
    )


def smooth(values: Array, width: float) -> Array:
    """Return the Gaussian average of `values [step]` with a standard deviation of `width` steps.

    It is centred, so that it moves no fall to other rates, and reflects the values at both ends.
    """
    reach = min(len(values) - 1, math.ceil(4 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _as_range_test(job: TrainingJob, low: float, high: float, steps: int) -> TrainingJob:
    """Return the job with a rising rate, in this process, without tracking and callbacks."""
    update = {
        "name": f"{job.name}-lr-range",
        "optimizer": job.optimizer.model_copy(update={"lr": high}),
        "schedule": job.schedule.model_copy(
            update={
                "name": "range_test",
                "total_steps": steps,
                "warmup_steps": 0,
                "final_lr_fraction": low / high,
                "stop_when": None,
            }
        ),
        "resources": job.resources.model_copy(
            update={"launcher": "none", "num_workers": 1, "ray_address": None}
        ),
        "parallel": job.parallel.model_copy(update={"strategy": "single"}),
        "checkpoint": job.checkpoint.model_copy(update={"every_steps": steps, "uri": None}),
        "validation": job.validation.model_copy(update={"every_steps": steps}),
        "tracking": job.tracking.model_copy(update={"uri": None}),
        "callbacks": (),
    }
    return job.model_copy(update=update)


def _free_directory(test: TrainingJob) -> Path:
    """Return the run's directory, without an earlier range test of the same job."""
    directory = below(Path(test.runs_dir), test.name)
    if (directory / RECORD).exists():
        shutil.rmtree(directory)
    return directory
