"""`pelagos predict` and `pelagos rollout`: a trained model's forecasts for a file of starts."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from pelagos.cli import completion
from pelagos.cli.choices import ClusterName, SearchedDir
from pelagos.cli.common import (
    AsJson,
    console,
    error_console,
    exit_on_error,
    print_json,
)

Model = Annotated[
    str,
    typer.Argument(
        help="A run, RUN@best or RUN@STEP; a model directory; OWNER/NAME of the Hugging Face hub; "
        "or models:/NAME of MLflow.",
        show_default=False,
        autocompletion=completion.runs,
    ),
]
Input = Annotated[
    str,
    typer.Argument(help="The starts: .nc, .zarr, .npy or .nii.", show_default=False),
]
Output = Annotated[
    str,
    typer.Argument(help="The file to write: .nc, .zarr, .npy or .nii.", show_default=False),
]
Start = Annotated[
    str,
    typer.Option(
        "--from",
        help="The frame along time that forecasts start from: last, first, a number, or all.",
    ),
]
Split = Annotated[
    str, typer.Option("--split", help="Of a Pelagos dataset: train, validation, test or all.")
]
Absent = Annotated[
    list[str] | None,
    typer.Option("--absent", metavar="FIELD", help="A field that the file lacks; may be repeated."),
]
Threads = Annotated[
    int, typer.Option("--workers", min=1, help="Threads that read and forecast at the same time.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Samples that go together; default: by size, at most 16.",
        show_default=False,
    ),
]
Weights = Annotated[
    str,
    typer.Option("--weights", help="Of a run: model, ema (averaged), or auto: ema if it keeps it."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow of models:/NAME; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def predict_command(
    model: Model,
    source: Input,
    output: Output,
    lead: Annotated[
        list[float] | None,
        typer.Option(
            "--lead",
            help="Lead time, in the data's unit of time; may be repeated. Default: the shortest one "
            "of the training.",
            show_default=False,
        ),
    ] = None,
    start: Start = "last",
    split: Split = "all",
    absent: Absent = None,
    workers: Threads = 1,
    batch_size: BatchSize = None,
    weights: Weights = "auto",
    tracking_uri: TrackingUri = None,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Forecast from every sample of a file, or find the classes of its images.

    The file is read and written in blocks, so it may be larger than memory. The output appears when
    it is complete.

    Example: pelagos predict quickstart@best starts.nc forecasts.nc --lead 0.5 --lead 1.0
    """
    with exit_on_error():
        from pelagos.jobs import predict
        from pelagos.jobs.forecasting.files import Options

        options = Options(
            start,
            split,
            tuple(absent or ()),
            workers,
            batch_size,
            runs_dir,
            weights,
            tracking_uri,
            overwrite,
            cluster,
        )
        shown = error_console if as_json else console
        written = predict.run(model, source, output, lead or (), options, shown)
    _report(written, as_json)


def rollout_command(
    model: Model,
    source: Input,
    output: Output,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Forecasts in a row.", show_default=False)
    ],
    lead: Annotated[
        float | None,
        typer.Option(
            "--lead",
            help="Lead time of one step; default: the shortest one of the training.",
            show_default=False,
        ),
    ] = None,
    start: Start = "last",
    split: Split = "all",
    absent: Absent = None,
    workers: Threads = 1,
    batch_size: BatchSize = None,
    weights: Weights = "auto",
    tracking_uri: TrackingUri = None,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Forecast step by step from every sample of a file: each forecast is the start of the next.

    The file is read and written in blocks, so it may be larger than memory. The output appears when
    it is complete.

    Example: pelagos rollout quickstart@best starts.nc rollout.zarr --steps 50 --lead 0.05
    """
    with exit_on_error():
        from pelagos.jobs import rollout
        from pelagos.jobs.forecasting.files import Options

        options = Options(
            start,
            split,
            tuple(absent or ()),
            workers,
            batch_size,
            runs_dir,
            weights,
            tracking_uri,
            overwrite,
            cluster,
        )
        shown = error_console if as_json else console
        written = rollout.run(model, source, output, steps, lead, options, shown)
    _report(written, as_json)


def _report(written: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(written))
        return
    leads = written.lead_times
    told = "" if not leads else f", lead time {leads[0]:g}"
    if len(leads) > 1:
        told = f", {len(leads)} lead times from {leads[0]:g} to {leads[-1]:g}"
    console.print(
        Text("wrote", style="green"),
        f"{written.output}: {', '.join(written.fields)} of {written.samples} samples{told}",
        soft_wrap=True,
    )
