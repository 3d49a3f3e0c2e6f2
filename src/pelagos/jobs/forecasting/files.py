"""One file through a model: opened, answered block by block, and written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from pelagos.jobs.forecasting.sinks import AtomicTarget, check_target
from pelagos.jobs.forecasting.sources import Source, open_source
from pelagos.jobs.forecasting.streaming import Answer, rows_per_block, stream
from pelagos.jobs.weights.trained_network import TrainedNetwork


@dataclass(frozen=True)
class Options:
    """How a file is read and written.

    Attributes:
        start: of frames along `time`, the one that forecasts start from: last, first, a number, or all.
        split: of a Pelagos dataset.
        absent: fields that the file lacks.
        workers: threads that read and forecast.
        batch_size: samples per block; None: as many as 32 MiB of forecasts hold, up to 16.
        runs_dir: where runs are; None: ./runs, and the clusters.
        cluster: look for a run on this one only.
        weights: of a run: `model`, `ema`, or `auto`.
        tracking_uri: MLflow's, for models:/NAME.
        overwrite: replace the output if it exists.
    """

    start: str = "last"
    split: str = "all"
    absent: tuple[str, ...] = ()
    workers: int = 1
    batch_size: int | None = None
    runs_dir: str | None = None
    weights: str = "auto"
    tracking_uri: str | None = None
    overwrite: bool = False
    cluster: str | None = None


@dataclass(frozen=True)
class Written:
    """Forecasts in a file: where, how many samples, the fields, and the lead times."""

    output: str
    samples: int
    fields: tuple[str, ...]
    lead_times: tuple[float, ...]


def write_answers(
    model: TrainedNetwork,
    source: str,
    output: str,
    fields: Sequence[str],
    make: Callable[[Source], Answer],
    options: Options,
    console: Console | None = None,
    answers_per_row: int = 1,
) -> int:
    """Write what `make(source)` answers to every sample of a file; return the number of samples.

    Args:
        fields: the names of an unnamed array's channels.
        answers_per_row: lead times of each sample.
    """
    target = check_target(output, source, overwrite=options.overwrite)
    opened = open_source(source, model, fields, options.start, options.split)
    most = rows_per_block(opened.values_per_row * answers_per_row)
    sink = AtomicTarget(target, opened.rows_axis, opened.num_rows, opened.num_grid_axes)
    return stream(
        opened,
        make(opened),
        sink,
        block_rows=options.batch_size or most,
        workers=options.workers,
        console=console,
    )
