"""The verb `convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pelagos.cli.common import AsJson, console, exit_on_error, finish, print_json
from pelagos.platform.config.overrides import override

if TYPE_CHECKING:
    from pelagos.data_pipelines.convert import Source
    from pelagos.data_pipelines.store import DatasetSpec
    from pelagos.jobs.convert import ConvertResult


def convert_command(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A file or folder in a known format, or a convert job (YAML).", show_default=False
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Argument(help="The dataset: a directory or an s3:// prefix.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides of a job: dotted.key=value", show_default=False),
    ] = None,
    list_formats: Annotated[bool, typer.Option("--list", help="List the formats.")] = False,
    format_name: Annotated[
        str | None, typer.Option("--format", help="The format; default: recognised from SOURCE.")
    ] = None,
    mapping: Annotated[
        str | None, typer.Option(help="YAML that describes plain arrays (docs/converting.md).")
    ] = None,
    draft_mapping: Annotated[
        bool,
        typer.Option("--draft-mapping", help="Propose a mapping for SOURCE's arrays, then stop."),
    ] = False,
    problem: Annotated[str | None, typer.Option(help="poseidon: CE-RP, …")] = None,
    labels: Annotated[str | None, typer.Option(help="nifti: folder of label volumes.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="images: resize to SIZE x SIZE pixels.")
    ] = None,
    level: Annotated[int, typer.Option(min=0, help="ome-zarr: level of the pyramid.")] = 0,
    allow_missing_chunks: Annotated[
        bool,
        typer.Option(
            "--allow-missing-chunks", help="ome-zarr: read missing chunks as the fill value."
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="The dataset's name; default: SOURCE's.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="arrays, netcdf: convert the files with this grid only, e.g. 64x128."),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to keep of every trajectory.")
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="train=0.8,validation=0.1,test=0.1, or numbers.")
    ] = None,
    max_trajectories: Annotated[
        int | None,
        typer.Option(min=1, help="At most this many, in proportion from every split."),
    ] = None,
    swap_axes: Annotated[
        bool, typer.Option("--swap-axes", help="Exchange x and y of the source.")
    ] = False,
    missing: Annotated[
        str | None,
        typer.Option(help="Missing values: reject (an error), fill, or mask (stored as a field)."),
    ] = None,
    fill_value: Annotated[
        float | None, typer.Option(help="Replaces missing values; default: the field's mean.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    compression: Annotated[str, typer.Option(help="none, lz4 or zstd; all lossless.")] = "lz4",
    trajectories_per_shard: Annotated[
        int | None,
        typer.Option(min=1, help="Trajectories per stored object; default: about 128 MiB."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Shards written at the same time; default: the cores, at most 4."),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Spread shards over this Ray cluster.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back and compare it with the source.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing dataset.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the dataset that would result, then stop.")
    ] = False,
    endpoint_url: Annotated[str | None, typer.Option(help="S3 endpoint of DESTINATION.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn data in a published file format into a dataset; run it again to continue.

    Exit status 0: converted (and the same, with --verify); 1: not the same; 2: cannot be converted.

    Example: pelagos convert CE-RP.nc data/ce-rp.zarr --max-trajectories 500 --verify
    """
    from pelagos.cli.job_files import is_job_file
    from pelagos.data_pipelines.convert.options import ConvertOptions, parse_grid, parse_splits
    from pelagos.infra.storage.remote import storage_options
    from pelagos.jobs import convert as job_module

    if list_formats:
        _show_formats(as_json)
        return
    with exit_on_error():
        if source is not None and is_job_file(source):
            given = [*([] if destination is None else [destination]), *(overrides or ())]
            _convert_job(source, [*given, *_as_overrides(context)], dry_run, as_json)
            return
        if source is not None and destination is None and source.endswith((".yaml", ".yml")):
            raise ValueError(f"there is no job file {source}")
        if overrides:
            raise ValueError(
                f"got {overrides[0]!r} after DESTINATION: overrides belong to job files"
            )
        if draft_mapping and source is not None:
            _show_draft(source)
            return
        if source is None or (destination is None and not dry_run):
            raise ValueError("convert needs SOURCE and DESTINATION, or --list")
        _check_choice("--dtype", dtype, ("float32", "float16", "bfloat16"))
        _check_choice("--compression", compression, ("none", "lz4", "zstd"))
        if missing is not None:
            _check_choice("--missing", missing, ("reject", "fill", "mask"))
        options = ConvertOptions(
            format=format_name,
            name=name,
            problem=problem,
            mapping=mapping,
            labels=labels,
            size=size,
            level=level,
            allow_missing_chunks=allow_missing_chunks,
            grid=None if grid is None else parse_grid(grid),
            num_frames=num_frames,
            splits=None if splits is None else parse_splits(splits),
            max_trajectories=max_trajectories,
            swap_axes=swap_axes,
            missing=missing,  # type: ignore[arg-type]
            fill_value=fill_value,
            dtype=dtype,  # type: ignore[arg-type]
            compression=compression,  # type: ignore[arg-type]
            trajectories_per_shard=trajectories_per_shard,
        )
        if dry_run:
            _show_plan(*job_module.plan(source, options), as_json)
            return
        assert destination is not None
        result = job_module.run(
            source,
            destination,
            options,
            overwrite=overwrite,
            verify=verify,
            num_workers=workers,
            ray_address=ray_address,
            storage_options=storage_options(destination, endpoint_url) or None,
            console=None if as_json else console,
        )
    _report(result, verify, as_json)
    finish(not result.differences)


def _as_overrides(context: typer.Context) -> list[str]:
    """Return the options that were given next to a job file as overrides of it.

    Raises:
        ValueError: an option has a key of the job of its own; names the key.
    """
    keys = {"verify": "verify", "overwrite": "overwrite", "workers": "resources.num_workers"}
    keys |= {"ray_address": "resources.ray_address", "endpoint_url": "storage.endpoint_url"}
    of_verb = ("source", "destination", "overrides", "dry_run", "as_json")
    found = []
    for name, value in context.params.items():
        given_by = context.get_parameter_source(name)
        if given_by is None or given_by.name != "COMMANDLINE" or name in of_verb:
            continue
        if name not in keys:
            option = "--" + name.removesuffix("_name").replace("_", "-")
            key = "options." + name.removesuffix("_name")
            raise ValueError(f"{option} is not for job files: give {key}=VALUE after the file")
        found.append(override(keys[name], value))
    return found


def _convert_job(path: str, overrides: list[str], dry_run: bool, as_json: bool) -> None:
    from pelagos.cli.job_files import load_as
    from pelagos.jobs import convert
    from pelagos.platform.config import ConvertJob
    from pelagos.platform.config.locating import errors_of

    job = load_as(ConvertJob, path, overrides)
    with errors_of(path, overrides):
        if dry_run:
            _show_plan(*convert.plan(job.source, convert.options_of(job)), as_json)
            return
        result = convert.run_job(job, None if as_json else console)
    _report(result, job.verify, as_json)
    finish(not result.differences)


def _show_draft(source: str) -> None:
    from pelagos.data_pipelines.convert.mapping.draft import draft_mapping

    draft = draft_mapping(source)
    typer.echo(draft.text, nl=False)


def _check_choice(option: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{option}: got {given!r}, allowed: {', '.join(allowed)}")


def _show_formats(as_json: bool) -> None:
    from pelagos.data_pipelines.convert import FORMATS

    if as_json:
        rows = [
            {"name": f.name, "description": f.description, "source": f.source}
            for f in FORMATS.values()
        ]
        print_json(rows)
        return
    table = Table("format", "description", "SOURCE")
    for found in FORMATS.values():
        table.add_row(found.name, found.description, found.source)
    console.print(table)


def _show_plan(source: Source, spec: DatasetSpec, as_json: bool) -> None:
    """Show the dataset that would result: shape, fields, splits, size."""
    raw_bytes = spec.num_trajectories * spec.num_frames * spec.frame_bytes
    if as_json:
        print_json(
            {
                "format": source.format,
                "spec": spec.to_json(),
                "shape": list(spec.shape),
                "raw_bytes": raw_bytes,
                "num_shards": spec.num_shards,
                "notes": list(source.notes),
            }
        )
        return
    from pelagos.cli.data_inspect import size

    axes = ("trajectory", "time", "channel", *spec.axis_names)
    rows: dict[str, Any] = {
        "dataset": f"{spec.name}, from {source.format}",
        "equation": spec.equation,
        "shape": ", ".join(f"{a} {n}" for a, n in zip(axes, spec.shape, strict=True)),
        "fields": ", ".join(spec.field_names),
        "parameters": ", ".join(spec.parameter_names),
        "splits": ", ".join(f"{n} {b - a}" for n, (a, b) in spec.splits.items()),
        "time": f"a frame every {spec.frame_interval:g}",
        "domain": " x ".join(f"{extent:g}" for extent in spec.domain_extent),
        "masks": ", ".join(f"{mask} of {name}" for name, mask in spec.masks.items()),
        "boundaries": ", ".join(f"{k}: {v}" for k, v in spec.boundary_conditions.items()),
        "normalisation": "published constants" if spec.published_normalization else "",
        "size": f"{size(raw_bytes)} of {spec.dtype} before compression ({spec.compression}), "
        f"{spec.num_shards} shards of {spec.shard_trajectories} trajectories",
    }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    console.print(table)
    for note in source.notes:
        console.print(f"note: {note}", highlight=False)


def _report(result: ConvertResult, verify: bool, as_json: bool) -> None:
    if as_json:
        found = {"differences": list(result.differences), "notes": list(result.notes)}
        print_json({"uri": result.uri, **found, **result.metrics})
        return
    from pelagos.jobs.convert import listed

    where = result.uri
    metrics = result.metrics
    if metrics["trajectories_converted"]:
        console.print(
            f"wrote {where}: {metrics['trajectories_converted']:.0f} trajectories, "
            f"{metrics['megabytes_per_second']:.0f} MB/s",
            soft_wrap=True,
        )
    if result.differences:
        count = len(result.differences)
        console.print(
            Text("not the same", style="red"), f"{where}: {count} differences", soft_wrap=True
        )
        console.print("  " + listed(list(result.differences)), soft_wrap=True)
    elif verify:
        console.print(Text("the same", style="green"), f"as the source: {where}", soft_wrap=True)
