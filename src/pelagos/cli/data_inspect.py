"""The text of `pelagos data inspect`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from pelagos.cli.common import console

if TYPE_CHECKING:
    from pelagos.data_pipelines.foreign.overview import ForeignOverview
    from pelagos.data_pipelines.management.inspection import DatasetDescription
    from pelagos.data_pipelines.management.plugin_description import PluginDescription

    Description = DatasetDescription | ForeignOverview | PluginDescription


def show_summary(found: Description) -> None:
    """Print the contents and the storage layout of a dataset, a line each."""
    rows = {
        **_common_rows(found),
        **_stored_rows(found),
        "fingerprint": found.fingerprint,
    }
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    console.print(table)


def _stored_rows(found: Description) -> dict[str, str]:
    from pelagos.data_pipelines.foreign.overview import ForeignOverview
    from pelagos.data_pipelines.management.plugin_description import PluginDescription

    if isinstance(found, ForeignOverview):
        return _foreign_storage(found)
    if isinstance(found, PluginDescription):
        return {"opened by": found.opened_by, "size": f"{size(found.raw_bytes)} as it is read"}
    return _storage(found)


def _common_rows(found: Description) -> dict[str, str]:
    spec = found.spec
    names = ("trajectory", "time", "channel", *spec.axis_names)
    axes = ", ".join(f"{name} {n}" for name, n in zip(names, found.shape, strict=True))
    boundaries = ", ".join(f"{side}: {kind}" for side, kind in spec.boundary_conditions.items())
    final_time = (spec.num_frames - 1) * spec.frame_interval
    return {
        "dataset": f"{spec.name} ({found.uri})",
        "equation": spec.equation,
        "shape": axes,
        "domain": " x ".join(f"{extent:g}" for extent in spec.domain_extent)
        + (f", boundaries {boundaries}" if boundaries else ""),
        "time": f"0 to {final_time:g}, a frame every {spec.frame_interval:g} "
        f"{spec.generator.get('time_unit', '')}".rstrip(),
        "splits": ", ".join(
            f"{name} {stop - start} ({start} to {stop - 1})" if stop > start else f"{name} 0"
            for name, (start, stop) in spec.splits.items()
        ),
        "constant fields": ", ".join(f"{k} = {v:g}" for k, v in spec.constant_fields.items()),
        "given fields": ", ".join(spec.given_fields),
        "masks": ", ".join(f"{mask} of {name}" for name, mask in spec.masks.items()),
        "parameters": ", ".join(
            f"{name} {low:g} to {high:g}" for name, (low, high) in found.parameter_ranges.items()
        ),
    }


def _storage(found: DatasetDescription) -> dict[str, str]:
    spec = found.spec
    return {
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
    }


def _foreign_storage(found: ForeignOverview) -> dict[str, str]:
    arrays = [
        f"{a.path}: Zarr v{a.zarr_format}, {a.dtype}, axes {', '.join(a.roles)}, chunks "
        f"{' x '.join(map(str, a.chunks))}"
        + (f" in shards {' x '.join(map(str, a.shards))}" if a.shards else "")
        for a in found.arrays
    ]
    return {
        "fields": ", ".join(found.spec.field_names),
        "size": f"{size(found.stored_bytes)} stored in {found.num_objects} objects, "
        f"{size(found.raw_bytes)} as float32",
        "arrays": "\n".join(arrays),
        "assumed": "; ".join(found.assumed),
        "notes": "; ".join(found.notes),
        "statistics": "none stored; `pelagos data stats` computes them",
        "faster": f"in Pelagos' own format: {found.hint}",
    }


def show_statistics(found: DatasetDescription | PluginDescription) -> None:
    """Print the statistics of a dataset, a line per field; those of a plugin's are of `train`."""
    from pelagos.data_pipelines.management.inspection import DatasetDescription

    if isinstance(found, DatasetDescription):
        statistics, title = found.statistics["all"], "statistics over all trajectories"
    else:
        statistics, title = found.statistics, "statistics over the training split"
    columns = ["mean", "std", "min", "max"]
    if found.spec.num_frames > 1:  # pictures and volumes do not change
        columns.append("delta_std")
    table = Table("field", "unit", *columns, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for field in found.spec.fields:
        row = statistics.get(field.name, {})
        table.add_row(
            field.name, field.unit, *(f"{row.get(name, math.nan):.5g}" for name in columns)
        )
    console.print(table)
    if found.spec.num_frames > 1:
        console.print("delta_std: standard deviation of the change from one frame to the next")


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
