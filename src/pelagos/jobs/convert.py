"""`pelagos convert`: data in published file formats becomes a dataset, killable at any moment.

1. look at the source whole: format, files, shapes, splits
2. create the dataset, or continue where a killed run stopped (the existing shards show where)
3. convert missing shards in threads or Ray tasks; each is written whole or not at all
4. finalize (statistics, manifest); if asked, read everything back and compare it with the source
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pelagos.data_pipelines.convert import ConvertOptions, Source, SourceError, open_source
from pelagos.data_pipelines.convert.mapping.loading import load_mapping
from pelagos.data_pipelines.convert.missing import settled
from pelagos.data_pipelines.convert.options import options_from
from pelagos.data_pipelines.convert.rounding import first_of_each_field
from pelagos.data_pipelines.convert.tasks import (
    ShardReport,
    compare_shard,
    convert_shard,
    listed,
)
from pelagos.data_pipelines.store import DatasetError, DatasetSpec, open_dataset
from pelagos.infra.storage.addresses import reject_empty_parts
from pelagos.infra.storage.read_policy import split_options
from pelagos.jobs.making.shard_work import (
    Launch,
    ShardProgress,
    abandoned_if_empty,
    begin,
    launcher,
    shard_progress,
)
from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import ResourcesConfig
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.storage_choice import options_for

MAX_DEFAULT_WORKERS = 4
MAX_DIFFERENCE = 200  # characters shown of one entry in which two specifications differ


@dataclass(frozen=True)
class ConvertResult:
    """The result of a conversion.

    Attributes:
        notes: decisions and roundings that a person should know, one sentence each.
        metrics: `trajectories` (of the dataset), `trajectories_converted` (by this call), `seconds`,
            `megabytes_per_second` (of raw stored type, of this call's conversion),
            `largest_read_bytes`, and with `verify` `verify_seconds`.
        differences: where the dataset is not the source, if they were compared.
    """

    uri: str
    spec: DatasetSpec
    notes: tuple[str, ...]
    metrics: dict[str, float]
    differences: tuple[str, ...] = ()


def plan(source: str, options: ConvertOptions) -> tuple[Source, DatasetSpec]:
    """The plan of a conversion: its input and the resulting dataset.

    Raises:
        SourceError: the source cannot be converted as asked.
    """
    found = settled(open_source(source, options), options)
    return found, found.spec(options)


def run(
    source: str,
    uri: str,
    options: ConvertOptions | None = None,
    *,
    overwrite: bool = False,
    verify: bool = False,
    num_workers: int | None = None,
    ray_address: str | None = None,
    storage_options: dict[str, Any] | None = None,
    console: Console | None = None,
) -> ConvertResult:
    """Convert `source` to a dataset at `uri`; the same call again continues where the last one stopped.

    Args:
        overwrite: replace another dataset that is there.
        verify: read the dataset back and compare every value with the source.
        num_workers: shards in work at a time; None: the cores of this machine, at most four.
        ray_address: spread the shards over this Ray cluster, which must see the same files.

    Raises:
        SourceError: the source cannot be converted as asked; nothing that is finished changes.
        DatasetError: the destination's address has an empty part.
        FileExistsError: another dataset is there.
    """
    return _run(
        source,
        uri,
        options or ConvertOptions(),
        _launcher(num_workers, ray_address),
        overwrite=overwrite,
        verify=verify,
        storage_options=storage_options,
        console=console or HarmlessConsole(quiet=True),
    )


def _run(
    source: str,
    uri: str,
    options: ConvertOptions,
    launching: AbstractContextManager[Launch[ShardReport]],
    *,
    overwrite: bool,
    verify: bool,
    storage_options: dict[str, Any] | None,
    console: Console,
) -> ConvertResult:
    reject_empty_parts(uri, DatasetError, split_options(storage_options)[0].backend)
    found, spec = plan(source, options)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)
    started = time.monotonic()
    with launching as launch, shard_progress(console) as progress:
        reports: list[ShardReport] = []
        if not overwrite and _is_there(uri, spec, storage_options):
            console.print(f"{uri} is already complete")
        else:
            reports = _convert(found, spec, uri, overwrite, storage_options, launch, progress)
        metrics = _metrics(spec, reports, time.monotonic() - started)
        seen = _notes_of(reports)
        for note in seen:
            console.print(f"note: {note}", highlight=False)
        notes = (*found.notes, *seen)
        if not verify:
            return ConvertResult(uri, spec, notes, metrics)
        started = time.monotonic()
        differences = _compare(found, spec, uri, storage_options, launch, progress)
        metrics["verify_seconds"] = time.monotonic() - started
    return ConvertResult(uri, spec, notes, metrics, tuple(differences))


def run_job(job: ConvertJob, console: Console | None = None) -> ConvertResult:
    """Convert as a job file says; the same job again continues where the last one stopped.

    Raises:
        ValueError: an unknown option of the job; and the errors of `run`.
    """
    return _run(
        job.source,
        job.uri,
        options_of(job),
        launcher(job.resources, num_threads=job.resources.num_workers),
        overwrite=job.overwrite,
        verify=job.verify,
        storage_options=options_for(job.uri, job.storage) or None,
        console=console or HarmlessConsole(quiet=True),
    )


def options_of(job: ConvertJob) -> ConvertOptions:
    """Return the options of a job. Raises ConfigError, which names each that is wrong."""
    try:
        options = options_from(job.options)
    except ValueError as error:
        lines = (line.partition(": ") for line in str(error).splitlines())
        problems = [Problem(tuple(key.split(".")), message) for key, _, message in lines]
        raise ConfigError(f"job {job.name}", problems) from error
    if options.mapping is not None:
        try:
            load_mapping(str(options.mapping))
        except SourceError as error:
            problem = Problem(("options", "mapping"), str(error))
            raise ConfigError(f"job {job.name}", [problem]) from error
    return options


def _launcher(
    num_workers: int | None, ray_address: str | None
) -> AbstractContextManager[Launch[ShardReport]]:
    workers = num_workers or min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1)
    resources = ResourcesConfig(
        launcher="ray" if ray_address else "none", num_workers=workers, ray_address=ray_address
    )
    return launcher(resources, num_threads=workers)


def _is_there(uri: str, spec: DatasetSpec, options: dict[str, Any] | None) -> bool:
    """Whether the complete dataset of this specification is there.

    Raises:
        FileExistsError: another complete dataset is there.
    """
    try:
        dataset = open_dataset(uri, options)
    except DatasetError:  # absent or unfinished: creating it shows which
        return False
    differences = spec.differences(dataset.spec)
    dataset.close()
    if differences:
        raise FileExistsError(
            f"{uri} already holds another complete dataset:\n  "
            + "\n  ".join(_shortened(line) for line in differences)
            + "\nChoose another destination, or pass --overwrite."
        )
    return True


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_DIFFERENCE else line[:MAX_DIFFERENCE] + "…"


def _convert(
    source: Source,
    spec: DatasetSpec,
    uri: str,
    overwrite: bool,
    options: dict[str, Any] | None,
    launch: Launch[ShardReport],
    progress: ShardProgress,
) -> list[ShardReport]:
    writer = begin(uri, spec, overwrite, options)
    missing = writer.missing_shards()
    left = sum(len(writer.shard_trajectories(shard)) for shard in missing)
    progress.begin(spec.name, spec.num_trajectories, spec.num_trajectories - left)
    reports = []
    with abandoned_if_empty(writer):
        for report in launch(functools.partial(convert_shard, writer, source), missing):
            progress.advance(report.num_trajectories, report.num_bytes)
            reports.append(report)
    progress.end()
    writer.finalize()
    return reports


def _notes_of(reports: list[ShardReport]) -> list[str]:
    """Findings that appear only when the values are read, one sentence per field."""
    in_order = sorted(reports, key=lambda report: report.shard)
    found = itertools.chain.from_iterable(report.roundings for report in in_order)
    return [rounding.note for rounding in first_of_each_field(found)]


def _compare(
    source: Source,
    spec: DatasetSpec,
    uri: str,
    options: dict[str, Any] | None,
    launch: Launch[ShardReport],
    progress: ShardProgress,
) -> list[str]:
    progress.begin(f"comparing {spec.name}", spec.num_trajectories, 0)
    differences: list[str] = []
    work = functools.partial(compare_shard, uri, options, source)
    for report in launch(work, list(range(spec.num_shards))):
        progress.advance(report.num_trajectories, report.num_bytes)
        differences += report.differences
    progress.end()
    return differences


def _metrics(spec: DatasetSpec, reports: list[ShardReport], seconds: float) -> dict[str, float]:
    return {
        "trajectories": spec.num_trajectories,
        "trajectories_converted": sum(r.num_trajectories for r in reports),
        "seconds": seconds,
        "megabytes_per_second": sum(r.num_bytes for r in reports) / 1e6 / seconds,
        "largest_read_bytes": max((r.largest_read_bytes for r in reports), default=0),
    }


__all__ = ["ConvertResult", "listed", "plan", "run"]
