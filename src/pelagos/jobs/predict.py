"""`pelagos predict`: a trained model's forecasts, or classes, for every sample of a file."""

import functools
from collections.abc import Sequence

from rich.console import Console

from pelagos.jobs.forecasting.files import Options, Written, write_answers
from pelagos.jobs.forecasting.finding import find_forecaster
from pelagos.jobs.forecasting.images import classes_of, input_fields
from pelagos.jobs.forecasting.sinks import check_target
from pelagos.jobs.forecasting.sources import Source
from pelagos.jobs.forecasting.streaming import Answer, each_warning_once


@each_warning_once()
def run(
    model: str,
    source: str,
    output: str,
    lead_times: Sequence[float] = (),
    options: Options | None = None,
    console: Console | None = None,
) -> Written:
    """Write the forecasts from every sample of a file, or the classes of every image; all or no file.

    Args:
        model: a run (RUN@best, RUN@STEP), a model directory, a model of the hub, or `models:/NAME`.
        source: .nc, .zarr, .npy or .nii.
        output: one of these.
        lead_times: in the unit of time of the training; none: the shortest of the training. Several
            are an axis `lead_time` of the output.

    Raises:
        ValueError: no such model or file, or the model does not take it; nothing was written.
    """
    options = options or Options()
    check_target(output, source, overwrite=options.overwrite)
    forecaster = find_forecaster(
        model, options.runs_dir, options.weights, options.tracking_uri, options.cluster
    )
    if forecaster.objective.call == "image":
        if lead_times or options.absent:
            raise ValueError(
                "the model gives classes of images: --lead and --absent are for forecasts"
            )
        classify = functools.partial(classes_of, forecaster)
        inputs = input_fields(forecaster)
        count = write_answers(
            forecaster, source, output, inputs, lambda _: classify, options, console
        )
        return Written(output, count, ("label",), ())
    leads = [forecaster.lead_of_step(lead) for lead in lead_times or (None,)]

    def make(opened: Source) -> Answer:
        absent = (*options.absent, *opened.absent)
        wanted = leads if len(leads) > 1 else leads[0]
        return lambda block: forecaster.predict(block, wanted, absent, offset=opened.offset)

    fields = tuple(name for name in forecaster.fields if name not in options.absent)
    count = write_answers(forecaster, source, output, fields, make, options, console, len(leads))
    return Written(output, count, fields, tuple(leads))
