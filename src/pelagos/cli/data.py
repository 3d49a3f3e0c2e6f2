"""`pelagos data`: looking at datasets, checking them, drawing them, timing them."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pelagos.cli import completion
from pelagos.cli.common import (
    AsJson,
    console,
    error_console,
    exit_on_error,
    finish,
    print_json,
)
from pelagos.cli.data_bench import bench_command
from pelagos.cli.data_description import DescriptionFile, description_at
from pelagos.cli.data_inspect import show_statistics, show_summary, size
from pelagos.infra.storage.remote import storage_options

if TYPE_CHECKING:
    from pelagos.data_pipelines.management.inspection import VerifyReport
    from pelagos.data_pipelines.store.readable import ReadableDataset

SHOWN_DAMAGE = 20
QUIET_SECONDS = 2.0  # shorter work shows no progress bar

_ENDINGS = (".png", ".gif")

app = typer.Typer(help="Look at datasets, time and manage them.", no_args_is_help=True)
app.command("bench")(bench_command)

Uri = Annotated[
    str,
    typer.Argument(
        help="A dataset: a directory or an s3:// prefix.",
        show_default=False,
        autocompletion=completion.datasets,
    ),
]
EndpointUrl = Annotated[
    str | None, typer.Option(help="S3 endpoint; default: AWS_ENDPOINT_URL, else Amazon's own.")
]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Send unsigned requests.")]


@app.command()
def inspect(
    uri: Uri,
    description: DescriptionFile = None,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
) -> None:
    """Show the contents of a dataset: fields, shape, splits, statistics, storage layout.

    For Zarr arrays from other tools it also shows the assumptions, and the command that converts.

    Example: pelagos data inspect quickstart/data/ns-gauss.zarr
    """
    from pelagos.cli.data_to_convert import as_no_dataset_yet
    from pelagos.data_pipelines.foreign.overview import ForeignOverview
    from pelagos.data_pipelines.management.inspection import describe_readable
    from pelagos.data_pipelines.store import DatasetError

    with exit_on_error():
        options = storage_options(uri, endpoint_url, anonymous=anonymous)
        try:
            found = describe_readable(uri, options, description_at(description))
        except DatasetError as error:
            raise as_no_dataset_yet(uri, error) from error
    if as_json:
        print_json(found.to_json())
        return
    show_summary(found)
    if not isinstance(found, ForeignOverview):
        show_statistics(found)


@app.command()
def verify(
    uri: Uri,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
) -> None:
    """Read a whole dataset and list everything that differs from what was written.

    Exit status 0: whole; 1: damaged; 2: there is no dataset to check.

    Example: pelagos data verify quickstart/data/ns-gauss.zarr --json
    """
    from pelagos.data_pipelines.management import inspection

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
    description: DescriptionFile = None,
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

    One-dimensional ones become space-time diagrams and profiles, volumes their middle planes. With
    --split, trajectories are counted from the first of the split. With --animation, the first of
    those chosen becomes a GIF, fields side by side.

    Example: pelagos data plot quickstart/data/ns-gauss.zarr --output ns.png --trajectories 0,5
    """
    with exit_on_error():
        # the cheap refusals first: drawing imports half a second of matplotlib
        wanted = _numbers(trajectories)
        if output is None:
            output = Path("dataset.gif" if animation else "dataset.png")
        _check_output(output, overwrite)
        _check_ending(output, animation)
        from pelagos.data_pipelines.foreign import open_readable
        from pelagos.data_pipelines.pictures.animation import animate
        from pelagos.data_pipelines.pictures.plots import contact_sheet

        options = storage_options(uri, endpoint_url, anonymous=anonymous)
        dataset = open_readable(uri, options, description_at(description))
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
    console.print(f"wrote {output}: trajectories {', '.join(map(str, chosen))}")


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--trajectories: got {text!r}, expected numbers with commas, e.g. 0,1,2")
    return [int(part) for part in parts]


def _check_ending(output: Path, animation: bool) -> None:
    """What is drawn is a PNG, or a GIF with `--animation`: no other name may promise otherwise."""
    ending = ".gif" if animation else ".png"
    if output.suffix.lower() != ending:
        other = "with" if output.suffix.lower() == ".gif" else "without"
        hint = f", or draw it {other} --animation" if output.suffix.lower() in _ENDINGS else ""
        raise ValueError(
            f"--output {output}: the ending must be {ending} "
            f"({'an animation' if animation else 'a sheet'}; allowed: .png, and .gif with "
            f"--animation){hint}"
        )


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a directory; name a file, e.g. {output / 'dataset.png'}")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another --output, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise ValueError(
            f"{output.absolute().parent} is not a directory; make it, or choose another"
        )


def _chosen(dataset: ReadableDataset, wanted: Sequence[int] | None, split: str | None) -> list[int]:
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
            f"--trajectories: {where} has {len(rows)}, numbered 0 to {len(rows) - 1}; it has no "
            f"{', '.join(map(str, outside))}"
        )
    return [rows[i] for i in wanted]


@contextlib.contextmanager
def late_progress(title: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Give `progress(done, in all)`, which shows a bar once two seconds have passed."""
    started = time.monotonic()
    columns = (
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
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


def _show_report(report: VerifyReport) -> None:
    counted = (
        f"{report.num_shards} shards, {report.num_chunks} chunks, {size(report.num_bytes)} read"
    )
    where = report.uri
    if report.is_whole:
        console.print(Text("whole", style="green"), f"{where}: {counted}", soft_wrap=True)
        return
    number = len(report.damage)
    places = "1 place" if number == 1 else f"{number} places"
    console.print(Text("damaged", style="red"), f"{where}: {places}; {counted}", soft_wrap=True)
    for damage in report.damage[:SHOWN_DAMAGE]:
        console.print(f"  {damage}", soft_wrap=True)
    if number > SHOWN_DAMAGE:
        console.print(f"  and {number - SHOWN_DAMAGE} more; --json lists all")
    console.print("Write the dataset again, or restore the named objects from a copy.")
