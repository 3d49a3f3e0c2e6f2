"""`pelagos data`: looking at datasets, checking them, drawing them, timing them."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pelagos.infra.object_store import storage_options
from pelagos.platform.cli.common import (
    console,
    error_console,
    exit_on_error,
    finish,
    print_json,
)
from pelagos.platform.cli.data_bench import bench_command

if TYPE_CHECKING:
    from pelagos.data_pipelines.inspection import DatasetDescription, VerifyReport
    from pelagos.data_pipelines.store import Dataset

SHOWN_DAMAGE = 20
QUIET_SECONDS = 2.0  # what takes no longer than this shows no progress bar

app = typer.Typer(help="Look at datasets, time and manage them.", no_args_is_help=True)
app.command("bench")(bench_command)

Uri = Annotated[
    str, typer.Argument(help="A dataset: a directory or an s3:// prefix.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
EndpointUrl = Annotated[
    str | None, typer.Option(help="S3 endpoint; default: AWS_ENDPOINT_URL, else Amazon's own.")
]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Send unsigned requests.")]


@app.command()
def inspect(
    uri: Uri,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
) -> None:
    """Show what a dataset holds: fields, shape, splits, statistics, how it is stored.

    Example: pelagos data inspect quickstart/data/ns-sines.zarr
    """
    from pelagos.data_pipelines.inspection import describe

    with exit_on_error():
        found = describe(uri, storage_options(uri, endpoint_url, anonymous=anonymous))
    if as_json:
        print_json(found.to_json())
        return
    _show_summary(found)
    _show_statistics(found)


@app.command()
def verify(
    uri: Uri,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
) -> None:
    """Read a whole dataset and list everything that is not as it was written.

    Exit status 0: whole; 1: damaged; 2: there is no dataset to check.

    Example: pelagos data verify quickstart/data/ns-sines.zarr --json
    """
    from pelagos.data_pipelines import inspection

    with exit_on_error(), late_progress("verifying shards", not as_json) as progress:
        options = storage_options(uri, endpoint_url, anonymous=anonymous)
        report = inspection.verify(uri, options, progress)
    if as_json:
        print_json(report.to_json())
    else:
        _show_report(report)
    finish(report.is_whole)


@app.command()
def plot(
    uri: Uri,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: dataset.png or dataset.gif.")
    ] = None,
    trajectories: Annotated[
        str | None, typer.Option(help="Numbers with commas; default: three, spread evenly.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Draw from this split.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture.")] = False,
    animation: Annotated[
        bool, typer.Option("--animation", help="A GIF of one trajectory, all its frames.")
    ] = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
) -> None:
    """Draw trajectories of a dataset: a row per field, a column per time.

    With --split, trajectories are counted from the first of the split. With --animation, the first
    of those chosen becomes a GIF, fields side by side.

    Example: pelagos data plot quickstart/data/ns-sines.zarr --output ns.png --trajectories 0,5
    """
    with exit_on_error():
        # the cheap refusals first: drawing imports half a second of matplotlib
        wanted = _numbers(trajectories)
        if output is None:
            output = Path("dataset.gif" if animation else "dataset.png")
        _check_output(output, overwrite)
        from pelagos.data_pipelines.animation import animate
        from pelagos.data_pipelines.plots import contact_sheet
        from pelagos.data_pipelines.store import open_dataset

        dataset = open_dataset(uri, storage_options(uri, endpoint_url, anonymous=anonymous))
        chosen = _chosen(dataset, wanted, split)
        partial = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if animation:
                chosen = chosen[:1]
                animate(dataset, partial, chosen[0])
            else:
                contact_sheet(dataset, partial, chosen)
            _check_output(output, overwrite)  # it may have come to be meanwhile
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    console.print(f"wrote {escape(str(output))}: trajectories {', '.join(map(str, chosen))}")


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--trajectories: got {text!r}, required: numbers with commas, e.g. 0,1,2")
    return [int(part) for part in parts]


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a directory; name a file, e.g. {output / 'dataset.png'}")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another --output, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise ValueError(
            f"{output.absolute().parent} is not a directory; make it, or choose another"
        )


def _chosen(dataset: Dataset, wanted: Sequence[int] | None, split: str | None) -> list[int]:
    """The trajectories to draw, numbered over the whole dataset. Raises `ValueError`."""
    rows = range(dataset.num_trajectories) if split is None else dataset.split(split)
    where = dataset.uri if split is None else f"split {split!r} of {dataset.uri}"
    if not rows:
        raise ValueError(f"{where} has no trajectories to draw")
    if wanted is None:
        count = min(3, len(rows))
        picks = [round(i * (len(rows) - 1) / max(1, count - 1)) for i in range(count)]
        return [rows[i] for i in picks]
    outside = [i for i in wanted if i >= len(rows)]
    if outside:
        raise ValueError(
            f"--trajectories: {where} has {len(rows)}, numbered 0 to {len(rows) - 1}; "
            f"there is no {', '.join(map(str, outside))}"
        )
    return [rows[i] for i in wanted]


@contextlib.contextmanager
def late_progress(title: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Give `progress(done, in all)`, which shows a bar once two seconds have passed."""
    started = time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=error_console, transient=True)
    task = bar.add_task(title, total=None)

    def advance(done: int, total: int) -> None:
        late = time.monotonic() - started > QUIET_SECONDS
        if shown and late and not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        bar.stop()


def _show_summary(found: DatasetDescription) -> None:
    spec = found.spec
    names = ("trajectory", "time", "channel", *spec.axis_names)
    axes = ", ".join(f"{name} {n}" for name, n in zip(names, found.shape, strict=True))
    boundaries = ", ".join(f"{side}: {kind}" for side, kind in spec.boundary_conditions.items())
    final_time = (spec.num_frames - 1) * spec.frame_interval
    rows: dict[str, Any] = {
        "dataset": f"{spec.name} ({found.uri})",
        "equation": spec.equation,
        "shape": axes,
        "domain": " x ".join(f"{extent:g}" for extent in spec.domain_extent)
        + (f", boundaries {boundaries}" if boundaries else ""),
        "time": f"0 to {final_time:g}, a frame every {spec.frame_interval:g}",
        "splits": ", ".join(
            f"{name} {stop - start} ({start} to {stop - 1})" if stop > start else f"{name} 0"
            for name, (start, stop) in spec.splits.items()
        ),
        "constant fields": ", ".join(f"{k} = {v:g}" for k, v in spec.constant_fields.items()),
        "given fields": ", ".join(spec.given_fields),
        "parameters": ", ".join(
            f"{name} {low:g} to {high:g}" for name, (low, high) in found.parameter_ranges.items()
        ),
        "size": f"{size(found.stored_bytes)} stored, {size(found.raw_bytes)} of {spec.dtype}: "
        f"{found.compression_ratio:.2f} to 1 ({spec.compression})",
        "shards": f"{found.num_shards} of {size(found.smallest_shard_bytes)} to "
        f"{size(found.largest_shard_bytes)}, up to {found.shard_shape[0]} trajectories each",
        "chunk": (
            "one frame"
            if spec.chunks_per_frame == 1
            else f"{' x '.join(map(str, spec.frame_chunk_shape))} points of one frame"
        )
        + f", {size(found.inner_chunk_bytes)} before compression",
        "fingerprint": found.fingerprint,
    }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    console.print(table)


def _show_statistics(found: DatasetDescription) -> None:
    columns = ["mean", "std", "min", "max"]
    if found.spec.num_frames > 1:  # pictures and volumes do not change
        columns.append("delta_std")
    table = Table("field", "unit", *columns, title="statistics over all trajectories")
    for column in table.columns[2:]:
        column.justify = "right"
    for field in found.spec.fields:
        row = found.statistics["all"][field.name]
        table.add_row(
            escape(field.name), escape(field.unit), *(f"{row[name]:.5g}" for name in columns)
        )
    console.print(table)
    if found.spec.num_frames > 1:
        console.print("delta_std: standard deviation of the change from one frame to the next")


def _show_report(report: VerifyReport) -> None:
    counted = (
        f"{report.num_shards} shards, {report.num_chunks} chunks, {size(report.num_bytes)} read"
    )
    where = escape(report.uri)
    if report.is_whole:
        console.print(f"[green]whole[/green] {where}: {counted}", soft_wrap=True)
        return
    number = len(report.damage)
    places = "1 place" if number == 1 else f"{number} places"
    console.print(f"[red]damaged[/red] {where}: {places}; {counted}", soft_wrap=True)
    for damage in report.damage[:SHOWN_DAMAGE]:
        console.print(f"  {escape(str(damage))}", soft_wrap=True)
    if number > SHOWN_DAMAGE:
        console.print(f"  and {number - SHOWN_DAMAGE} more; --json lists all")
    console.print("Write the dataset again, or bring the named objects back from a copy.")


def size(num_bytes: int) -> str:
    """Return a number of bytes in the largest fitting decimal unit.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
