"""Missing values of a source: rejected, filled, or masked by a field of their own.

Missing are numbers that the conventions of an array say are no value, and NaN. To fill or to mask
them, the source is read once before it is converted: the fill is the mean of the values that there
are, and whether a mask is the same in every frame, and the same for several fields, shows only then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions.decoding import MISSING_ADVICE
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.reading import blocks
from pelagos.data_pipelines.convert.source import Settlement, Source, SourceError
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import LABEL_KIND
from pelagos.data_pipelines.store.shard_stream import NonFiniteError

MASK_NAME = "mask"


@dataclass
class _FieldSurvey:
    """The known properties of one field of a source.

    Attributes:
        missing, total: how many values are missing, of how many.
        sums: of the values of each block of the training split.
        count: of the values in these sums.
        digest: of the mask in all frames: of fields with equal ones the masks are equal.
        is_fixed: whether the mask is the same in every frame of each trajectory.
    """

    missing: int = 0
    total: int = 0
    sums: list[float] = field(default_factory=list)
    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    is_fixed: bool = True
    first: npt.NDArray[np.bool_] | None = None


def settled(source: Source, options: ConvertOptions) -> Source:
    """The source with its missing values filled or masked, as it or the options ask.

    Reads all of the source, unless they are to be rejected.

    Raises:
        SourceError: a field has no value at all, or a value is infinite.
    """
    policy = options.missing or source.missing
    fill = source.fill_value if options.fill_value is None else options.fill_value
    if policy == "reject":
        if fill is not None:
            raise SourceError("fill_value needs `missing: fill` or `missing: mask`")
        return dataclasses.replace(source, missing="reject")
    source = dataclasses.replace(source, missing=policy)
    found = _survey(source)
    if not any(survey.missing for survey in found):
        note = f"no value is missing: nothing was {'filled' if policy == 'fill' else 'masked'}"
        return dataclasses.replace(source, missing="reject", notes=(*source.notes, note))
    fills = _fills(source, found, fill)
    masks = _masks(source, found) if policy == "mask" else {}
    return _with_settlement(source, found, fills, masks)


def advice_on_non_finite(source: Source, error: NonFiniteError) -> str:
    """Advice about a value that is not finite.

    For NaN, also their number in the field in the trajectory.

    Reads the trajectory again.
    """
    values, missing = 0, 0
    is_missing_there = False
    for block in blocks(source, range(error.trajectory, error.trajectory + 1)):
        is_missing = np.isnan(block.frames[:, error.channel])
        values, missing = values + is_missing.size, missing + int(is_missing.sum())
        at = error.frame - block.first_frame
        if 0 <= at < len(is_missing):
            is_missing_there = bool(is_missing[at].any())
    if not is_missing_there:
        return (
            ". Values beyond 3.4e38 become infinite, and in float16 values from 65520 on. Unless "
            "the source holds infinite values, use another unit, or float32"
        )
    return (
        f". NaN is no value. This is true of {missing} of the {values} values of the field in the "
        f"trajectory. {MISSING_ADVICE}"
    )


def _survey(source: Source) -> list[_FieldSurvey]:
    found = [_FieldSurvey() for _ in source.fields]
    split = "train" if "train" in source.splits else next(iter(source.splits))
    ranges, start = {}, 0
    for name, parts in source.splits.items():
        count = sum(part.count for part in parts)
        ranges[name] = range(start, start + count)
        start += count
    for block in blocks(source, range(source.num_trajectories)):
        for at, frame in enumerate(block.frames):
            trajectory = block.trajectory + (block.first_frame + at) // source.num_frames
            time = (block.first_frame + at) % source.num_frames
            for survey, values in zip(found, frame, strict=True):
                _add(survey, values, time, trajectory in ranges[split])
    return found


def _add(
    survey: _FieldSurvey, values: npt.NDArray[np.floating], time: int, is_training: bool
) -> None:
    is_missing = np.isnan(values)
    survey.missing += int(is_missing.sum())
    survey.total += values.size
    survey.digest.update(np.packbits(is_missing).tobytes())
    if time == 0 or survey.first is None:
        survey.first = is_missing
    elif survey.is_fixed:
        survey.is_fixed = bool(np.array_equal(survey.first, is_missing))
    if is_training:
        present = values[~is_missing]
        survey.sums.append(float(present.sum(dtype=np.float64)))
        survey.count += present.size


def _fills(source: Source, found: list[_FieldSurvey], given: float | None) -> dict[int, float]:
    """The number that takes the place of missing values, by channel."""
    fills = {}
    for channel, survey in enumerate(found):
        if not survey.missing:
            continue
        if not survey.count:
            raise SourceError(
                f"{source.name}: field {source.fields[channel].name!r} has no value in the training "
                f"split: leave it out"
            )
        if source.fields[channel].kind == LABEL_KIND:
            fills[channel] = _fill_of_label(source, channel, given)
            continue
        mean = math.fsum(survey.sums) / survey.count
        if given is None and not math.isfinite(mean):
            raise SourceError(
                f"{source.name}: field {source.fields[channel].name!r} has an infinite value, which "
                f"is neither a value nor missing"
            )
        fills[channel] = float(np.float32(mean if given is None else given))
    return fills


def _fill_of_label(source: Source, channel: int, given: float | None) -> float:
    """The replacement of a missing class: the given one, or 0 where a mask marks the points.

    Raises:
        SourceError: nothing is given and no mask exists, or no whole number is given.
    """
    name = source.fields[channel].name
    if given is None and source.missing != "mask":
        raise SourceError(
            f"{source.name}: field {name!r} numbers classes, which have no mean. Name the class "
            "that replaces missing ones (--fill-value 0), or mask them (--missing mask)"
        )
    if given is not None and given != int(given):
        raise SourceError(
            f"{source.name}: fill_value {given:g} is not a class: field {name!r} holds whole "
            "numbers. Give one, or leave it out"
        )
    return float(given or 0)


def _masks(source: Source, found: list[_FieldSurvey]) -> dict[str, tuple[int, ...]]:
    """Masks by their names, each with the channels that it masks."""
    groups: dict[bytes, list[int]] = {}
    for channel, survey in enumerate(found):
        if survey.missing:
            groups.setdefault(survey.digest.digest(), []).append(channel)
    names = [f.name for f in source.fields]
    masks = {}
    for channels in groups.values():
        name = MASK_NAME if len(groups) == 1 else f"{MASK_NAME}-{names[channels[0]]}"
        while name in names:
            name += "-of-values"
        masks[name] = tuple(channels)
    return masks


def _with_settlement(
    source: Source,
    found: list[_FieldSurvey],
    fills: dict[int, float],
    masks: dict[str, tuple[int, ...]],
) -> Source:
    names = [f.name for f in source.fields]
    first = len(names)
    settlement = Settlement(
        fills=fills,
        masks={first + i: channels for i, channels in enumerate(masks.values())},
        fixed=tuple(
            name for name, channels in masks.items() if all(found[c].is_fixed for c in channels)
        ),
    )
    mask_of = {names[c]: mask for mask, channels in masks.items() for c in channels}
    notes = []
    for channel, value in fills.items():
        survey, name = found[channel], names[channel]
        share = survey.missing / survey.total
        how = f"masked by the field {mask_of[name]!r}" if name in mask_of else "filled"
        notes.append(
            f"{name}: {survey.missing} of {survey.total} values ({share:.3g}) are missing: {how}, "
            f"with {value:g} in their place"
        )
    return dataclasses.replace(
        source,
        fields=(*source.fields, *(Field(name, "mask") for name in masks)),
        settlement=settlement,
        masks=mask_of,
        notes=(*source.notes, *notes),
        details={
            **source.details,
            "missing": {
                "policy": source.missing,
                "fill": {names[c]: value for c, value in fills.items()},
                "count": {names[c]: found[c].missing for c in fills},
            },
        },
    )
