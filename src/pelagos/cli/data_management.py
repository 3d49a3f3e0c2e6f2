"""`pelagos data stats|split|merge|append|copy`: verbs for whole datasets."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pelagos.cli.common import AsJson, console, exit_on_error, finish, print_json
from pelagos.cli.data import EndpointUrl, Uri, late_progress
from pelagos.cli.data_description import DescriptionFile, description_at
from pelagos.infra.storage.addresses import reject_empty_parts
from pelagos.infra.storage.remote import storage_options

if TYPE_CHECKING:
    from pelagos.data_pipelines.foreign import Description
    from pelagos.data_pipelines.store.readable import ReadableDataset

app = typer.Typer()


@app.command()
def stats(
    uri: Uri,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write NAME.png and NAME.json.")
    ] = None,
    description: DescriptionFile = None,
    as_json: AsJson = False,
    endpoint_url: EndpointUrl = None,
) -> None:
    """Read a whole dataset: compare statistics with its manifest, plot histograms and energy spectra.

    For a foreign Zarr array with a description, the statistics are kept in the file that it names.

    Exit status 0: the statistics agree; 1: they differ.

    Example: pelagos data stats quickstart/data/ns-gauss.zarr --output ns-sines
    """
    with exit_on_error(), late_progress("reading trajectories", not as_json) as progress:
        if output is not None:
            _refuse_output(output)
        from pelagos.data_pipelines.foreign import ForeignDataset
        from pelagos.data_pipelines.management import statistics_report
        from pelagos.data_pipelines.store import Dataset

        dataset = _open(uri, endpoint_url, description_at(description))
        stored = dataset.manifest.statistics if isinstance(dataset, Dataset) else None
        if isinstance(dataset, ForeignDataset) and description is not None:
            stored = dataset.all_statistics  # computes and keeps them, if they are absent
        found = statistics_report.report(dataset, stored, progress)
        if output is not None:
            _write(_named(output, ".json"), json.dumps(found.to_json(), indent=1).encode())
            picture = _named(output, ".png")
            partial = picture.with_name(f".{picture.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                statistics_report.draw(found, partial, dataset.spec.frame_interval)
                partial.replace(picture)
            finally:
                partial.unlink(missing_ok=True)
    if as_json:
        print_json(found.to_json())
    else:
        for name, row in found.statistics["all"].items():
            numbers = "  ".join(
                f"{k} {row.get(k, math.nan):.6g}" for k in ("mean", "std", "min", "max")
            )
            console.print(f"{name}: {numbers}", soft_wrap=True)
        for sentence in found.differences:
            console.print(Text("differs", style="red"), sentence, soft_wrap=True)
        if output is not None:
            console.print(
                f"wrote {_named(output, '.png')}, {_named(output, '.json')}", soft_wrap=True
            )
    finish(not found.differences)


@app.command()
def append(
    uri: Uri,
    source: Annotated[str, typer.Argument(help="The dataset to append, of equal schema.")],
    split: Annotated[
        str | None,
        typer.Option(help="Add the new trajectories to this split, the last one; default: none."),
    ] = None,
    description: DescriptionFile = None,
    endpoint_url: EndpointUrl = None,
) -> None:
    """Append the trajectories of a dataset to another without rewriting its own.

    Example: pelagos data append all.zarr new.zarr --split train
    """
    with exit_on_error(), late_progress("writing shards", True) as progress:
        from pelagos.data_pipelines.management import appending

        _reject_addresses(uri, source)
        dataset = _own(uri, endpoint_url)
        more = _open(source, endpoint_url, description_at(description))
        manifest = appending.append(dataset, more, extend_split=split, progress=progress)
    console.print(
        f"{uri} now has {manifest.spec.num_trajectories} trajectories, {more.num_trajectories} of "
        f"them new; fingerprint {manifest.fingerprint[:16]}",
        soft_wrap=True,
    )


@app.command()
def copy(
    uri: Uri,
    destination: Annotated[str, typer.Argument(help="A new directory or s3:// prefix.")],
    endpoint_url: EndpointUrl = None,
    destination_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the destination; default: the same.")
    ] = None,
) -> None:
    """Copy a dataset and compare every checksum; run it again to continue an interrupted copy.

    Example: pelagos data copy s3://bucket/ns.zarr data/ns.zarr
    """
    with exit_on_error(), late_progress("copying shards", True) as progress:
        from pelagos.data_pipelines.management import copying

        _reject_addresses(uri, destination)
        options = storage_options(destination, destination_endpoint_url or endpoint_url)
        written = copying.copy(_own(uri, endpoint_url), destination, options, progress)
    console.print(
        f"{destination} is a copy of {uri}: {written} shards written now",
        soft_wrap=True,
    )


@app.command()
def split(
    uri: Uri,
    ranges: Annotated[
        list[str], typer.Argument(help="NAME=START:STOP for every split, half-open.")
    ],
    endpoint_url: EndpointUrl = None,
) -> None:
    """Change the splits of a dataset; no data is rewritten, the statistics follow.

    Example: pelagos data split all.zarr train=0:80 validation=80:90 test=90:100
    """
    with exit_on_error():
        splits = _splits(ranges)
        from pelagos.data_pipelines.management import revising

        manifest = revising.change_splits(_own(uri, endpoint_url), splits)
    console.print(f"{uri}: {splits}; fingerprint {manifest.fingerprint[:16]}", soft_wrap=True)


@app.command()
def merge(
    destination: Annotated[str, typer.Argument(help="A new directory or s3:// prefix.")],
    sources: Annotated[list[str], typer.Argument(help="Datasets of equal schema.")],
    name: Annotated[str | None, typer.Option(help="Name of the result.")] = None,
    endpoint_url: EndpointUrl = None,
) -> None:
    """Write one dataset from several; their splits are joined by name.

    Example: pelagos data merge all.zarr first.zarr second.zarr
    """
    with exit_on_error(), late_progress("writing shards", True) as progress:
        from pelagos.data_pipelines.management import merging

        _reject_addresses(destination, *sources)
        spec = merging.merge(
            [_open(source, endpoint_url, None) for source in sources],
            destination,
            name=name,
            storage_options=storage_options(destination, endpoint_url),
            progress=progress,
        )
    console.print(f"wrote {destination}: {spec.num_trajectories} trajectories", soft_wrap=True)


def _reject_addresses(*uris: str) -> None:
    """Reject all that cannot be read before the first is asked for."""
    for uri in uris:
        reject_empty_parts(uri, ValueError)


def _own(uri: str, endpoint_url: str | None) -> Any:
    """A Pelagos dataset."""
    from pelagos.data_pipelines.store import open_dataset

    return open_dataset(uri, storage_options(uri, endpoint_url))


def _open(uri: str, endpoint_url: str | None, description: Description | None) -> ReadableDataset:
    """A dataset, whoever wrote it."""
    from pelagos.data_pipelines.foreign import open_readable

    return open_readable(uri, storage_options(uri, endpoint_url), description)


def _splits(ranges: list[str]) -> dict[str, tuple[int, int]]:
    from pelagos.data_pipelines.store.splits import meant_split

    pairs = [_range(text) for text in ranges]
    splits = dict(pairs)
    if len(splits) < len(pairs):
        raise ValueError(
            f"got {' '.join(ranges)}, which names a split twice; each split has one range"
        )
    for name in splits:
        if meant := meant_split(name):
            raise ValueError(f"unknown split {name!r}; did you mean {meant!r}?")
    return splits


def _range(text: str) -> tuple[str, tuple[int, int]]:
    name, _, bounds = text.partition("=")
    start, separator, stop = bounds.partition(":")
    if not (name and separator and start.isdecimal() and stop.isdecimal()):
        raise ValueError(f"got {text!r}, expected NAME=START:STOP, e.g. train=0:80")
    return name, (int(start), int(stop))


def _named(output: Path, suffix: str) -> Path:
    """`output` with a suffix behind its name, in which a dot may stand: `nu1.5` is `nu1.5.png`."""
    stem = output.stem if output.suffix in (".png", ".json") else output.name
    return output.with_name(stem + suffix)


def _refuse_output(output: Path) -> None:
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: give the name of new files in an existing directory")
    for path in (_named(output, ".json"), _named(output, ".png")):
        if path.exists():
            raise ValueError(f"{path} exists; choose another --output")


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    partial.write_bytes(content)
    partial.replace(path)
