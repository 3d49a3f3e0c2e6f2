"""`pelagos rollout`: forecasts fed back into the model, step after step, for every sample of a file."""

from rich.console import Console

from pelagos.jobs.forecasting.files import Options, Written, write_answers
from pelagos.jobs.forecasting.finding import find_forecaster
from pelagos.jobs.forecasting.sinks import check_target
from pelagos.jobs.forecasting.sources import Source
from pelagos.jobs.forecasting.streaming import Answer, each_warning_once


@each_warning_once()
def run(
    model: str,
    source: str,
    output: str,
    steps: int,
    lead_time: float | None = None,
    options: Options | None = None,
    console: Console | None = None,
) -> Written:
    """Write `steps` forecasts of `lead_time` each, from every sample of a file.

    Args:
        model: a run (RUN@best, RUN@STEP), a model directory, a model of the hub, or `models:/NAME`.
        source: .nc, .zarr, .npy or .nii.
        output: one of these.
        lead_time: of one step, in the unit of time of the training; None: the shortest of the training.

    Raises:
        ValueError: no such model or file, or the model does not take it; nothing was written.
    """
    options = options or Options()
    check_target(output, source, overwrite=options.overwrite)
    forecaster = find_forecaster(
        model, options.runs_dir, options.weights, options.tracking_uri, options.cluster
    )
    step = forecaster.lead_of_step(lead_time)

    def make(opened: Source) -> Answer:
        absent = (*options.absent, *opened.absent)
        return lambda block: forecaster.rollout(block, steps, step, absent, offset=opened.offset)

    fields = tuple(name for name in forecaster.fields if name not in options.absent)
    count = write_answers(forecaster, source, output, fields, make, options, console, steps)
    return Written(output, count, fields, tuple(step * (n + 1) for n in range(steps)))
