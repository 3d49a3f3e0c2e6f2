"""`pelagos data bench`: how fast a dataset can be read from here, and the settings for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from pelagos.cli.common import AsJson, console, error_console, exit_on_error, print_json
from pelagos.cli.data_description import DescriptionFile, description_at
from pelagos.infra.storage.remote import storage_options

if TYPE_CHECKING:
    from pelagos.data_pipelines.streaming.bench import BenchReport


def bench_command(
    uri: Annotated[
        str, typer.Argument(help="A dataset: a directory or an s3:// prefix.", show_default=False)
    ],
    step_time: Annotated[
        float, typer.Option(help="Seconds of computation in a training step.")
    ] = 0.25,
    batch: Annotated[int, typer.Option(help="Samples per step of one worker.")] = 16,
    frames: Annotated[int, typer.Option(help="Frames of a sample.")] = 2,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 1.0,
    description: DescriptionFile = None,
    as_json: AsJson = False,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint; default: AWS_ENDPOINT_URL, else Amazon's own.")
    ] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Send unsigned requests.")] = False,
    backend: Annotated[
        Literal["auto", "obstore", "fsspec"], typer.Option(help="Client for reading.")
    ] = "auto",
) -> None:
    """Measure how fast a dataset can be read, and recommend threads, prefetch and cache.

    Reads for about ten seconds and writes nothing.

    Example: pelagos data bench quickstart/data/ns-gauss.zarr --step-time 0.2 --batch 16
    """
    from pelagos.data_pipelines.streaming.bench import bench

    options = storage_options(uri, endpoint_url, anonymous=anonymous, backend=backend)
    with exit_on_error(), error_console.status("measuring") as status:
        report = bench(
            uri,
            options,
            step_seconds=step_time,
            batch_size=batch,
            num_frames=frames,
            seconds=seconds,
            description=description_at(description),
            progress=lambda text: status.update(Text(text)),
        )
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, step_time, batch)


def _show(report: BenchReport, step_time: float, batch: int) -> None:
    console.print(
        f"{report.uri} by {report.store}: opened in {report.open_seconds:.2f} s; a window is "
        f"{report.window_bytes / 1e3:.0f} kB, the dataset {report.dataset_bytes / 1e9:.3g} GB"
    )
    table = Table("", "threads", "windows/s", "MB/s", "median", "p99", "CPU/window", "requests")
    for name, readings in (("raw bytes", report.raw), ("reader", report.reader)):
        for r in readings:
            table.add_row(
                name,
                str(r.num_threads),
                f"{r.windows_per_second:.0f}",
                f"{r.megabytes_per_second:.0f}",
                f"{r.median_seconds * 1e3:.2f} ms",
                f"{r.p99_seconds * 1e3:.2f} ms",
                f"{r.cpu_milliseconds:.2f} ms",
                f"{r.requests_per_window:.2f}",
            )
    console.print(table)
    if not report.raw:
        console.print(
            "a Zarr array from another tool: read through zarr, without the raw-bytes row. "
            f"Pelagos' own format is faster: pelagos convert {report.uri} NEW.zarr",
            soft_wrap=True,
        )
    found = report.recommendation
    verdict = "enough" if found.is_enough else "not enough"
    console.print(
        f"batches of {batch} every {step_time:g} s need {found.needed_windows_per_second:.0f} "
        f"windows/s: {verdict}. A consumer waited {100 * found.stall_fraction:.1f} % of the time"
    )
    console.print(
        f"data.num_threads={found.num_threads} data.prefetch_steps={found.prefetch_steps}"
    )
    if found.cache_bytes is not None:
        console.print(
            f"data.cache={{directory: DIRECTORY, max_bytes: {found.cache_bytes}}} would hold all of "
            "it on a node's disk: from the second pass over the data on, the speed of that disk "
            "counts"
        )
