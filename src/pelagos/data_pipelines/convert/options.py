"""Options of a conversion beyond source and destination."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pelagos.data_pipelines.store.splits import canonical_splits
from pelagos.infra.suggestions import nearest


@dataclass(frozen=True)
class ConvertOptions:
    """Choices of a conversion.

    Args:
        format: a name of the registry; None: recognised from the source.
        name: the dataset's name; None: the source's.
        problem: poseidon: which published problem (`CE-RP`), where file names do not say it.
        mapping: arrays: the YAML file that describes the arrays.
        labels: nifti: the folder of label volumes, where it is not next to the images.
        size: images: stored pixels per side, resized to it; None: as they are, all of one size.
        level: ome-zarr: which level of the pyramid; 0 is the full resolution.
        allow_missing_chunks: ome-zarr: read absent chunks as the fill value.
        grid: arrays, netcdf: of files with several grids, convert those of this one, `(y, x)`.
        num_frames: frames per trajectory to keep; None: all, which must be equally many (of CFDBench,
            whose cases are cut into trajectories, the shortest case's).
        splits: `{"train": 0.8, "test": 0.2}`: shares, or numbers of trajectories; None: the
            format's. Not for sources that come in splits.
        max_trajectories: convert this many, taken from the beginning of every split in proportion.
        swap_axes: exchange x and y of a two-dimensional source.
        missing: the treatment of missing values: `reject`, `fill` or `mask`; None: as the mapping
            says, or else an error.
        fill_value: the number in their place; None: the field's mean.
        dtype, compression, trajectories_per_shard: as in `DatasetSpec`.
    """

    format: str | None = None
    name: str | None = None
    problem: str | None = None
    mapping: str | None = None
    labels: str | None = None
    size: int | None = None
    level: int = 0
    allow_missing_chunks: bool = False
    grid: tuple[int, ...] | None = None
    num_frames: int | None = None
    splits: dict[str, float] | None = None
    max_trajectories: int | None = None
    swap_axes: bool = False
    missing: Literal["reject", "fill", "mask"] | None = None
    fill_value: float | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    trajectories_per_shard: int | None = None


def options_from(settings: Mapping[str, Any]) -> ConvertOptions:
    """Return the options of a job file's `options`.

    >>> options_from({"format": "arrays", "splits": {"train": 3, "test": 1}}).splits
    {'train': 3.0, 'test': 1.0}

    Raises:
        ValueError: names each option that there is not, or whose value is of another type.
    """
    known = [field.name for field in fields(ConvertOptions)]
    problems = [
        f"options.{key}: no such option{nearest(key, known)}; known: {', '.join(known)}"
        for key in settings
        if key not in known
    ]
    given = json.dumps({key: value for key, value in settings.items() if key in known})
    try:
        options = TypeAdapter(ConvertOptions).validate_json(given, strict=True)
        if options.splits is not None:
            options = replace(options, splits=canonical_splits(options.splits))
    except ValidationError as error:
        problems += [
            f"options.{'.'.join(map(str, e['loc']))}: got {e['input']!r}, {e['msg']}"
            for e in error.errors()
        ]
    except ValueError as error:
        problems.append(f"options.splits: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return options


def parse_splits(text: str) -> dict[str, float]:
    """Splits as written on a command line.

    >>> parse_splits("train=0.8,test=0.2")
    {'train': 0.8, 'test': 0.2}

    Raises:
        ValueError: not of that form, not all numbers positive, or a name is no split's.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = part.strip().partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not separator or not name or name in splits or not 0 < number < math.inf:
            raise ValueError(
                f"--splits: got {part.strip()!r} in {text!r}, expected name=share or name=number "
                "with commas, e.g. train=0.8,validation=0.1,test=0.1"
            )
        splits[name] = number
    try:
        return canonical_splits(splits)
    except ValueError as error:
        raise ValueError(f"--splits {text}: {error}") from error


def parse_grid(text: str) -> tuple[int, ...]:
    """A grid as written on a command line.

    >>> parse_grid("64x128")
    (64, 128)

    Raises:
        ValueError: not of that form.
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts) or len(parts) > 3:
        raise ValueError(
            f"--grid: got {text!r}, expected points per axis, the slowest first, e.g. 64x128"
        )
    return tuple(map(int, parts))


def split_counts(total: int, splits: dict[str, float]) -> dict[str, int]:
    """Trajectories per split, in order; shares that add up to 1 leave none out.

    >>> split_counts(11, {"train": 0.8, "validation": 0.1, "test": 0.1})
    {'train': 9, 'validation': 1, 'test': 1}

    Raises:
        ValueError: neither shares of at most 1 together nor whole numbers of at most `total`.
    """
    asked = sum(splits.values())
    if asked <= 1 + 1e-9 and total > 1:
        counts = {name: int(share * total + 1e-9) for name, share in splits.items()}
        if asked > 1 - 1e-9:
            counts[next(iter(counts))] += total - sum(counts.values())
    elif all(value == int(value) for value in splits.values()) and asked <= total:
        counts = {name: int(value) for name, value in splits.items()}
    else:
        raise ValueError(
            f"splits {splits} of {total} trajectories: expected shares that add up to at most 1, or "
            f"whole numbers that add up to at most {total}"
        )
    if min(counts.values()) < 1:
        raise ValueError(f"splits {splits} of {total} trajectories leave a split empty: {counts}")
    return counts
