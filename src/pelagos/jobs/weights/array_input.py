"""Fields as a torch or numpy array: checked, paired with lead times, and the answer as the same kind."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Given = TypeVar("Given")


def is_labelled(fields: Any) -> TypeGuard[Any]:
    """Whether fields are an xarray object; xarray is not imported for others."""
    return type(fields).__module__.partition(".")[0] == "xarray"


def require_samples(shape: tuple[int, ...]) -> None:
    """Raise ValueError for fields without a single value."""
    if not all(shape):
        raise ValueError(f"fields have shape {shape}: there is nothing to forecast from")


@dataclass(frozen=True)
class ArrayInput:
    """An array of fields.

    Attributes:
        values: `[batch, (frame,) channel, *grid]` float32, in the model's order of fields.
        has_samples: whether the array had an axis of samples.
        absent: the model's fields that the array lacks.
        order: the model's channels in the order of the array's.
        kind: the given array, whose type the answer gets.
    """

    values: Tensor
    has_samples: bool
    absent: tuple[str, ...]
    order: tuple[int, ...]
    kind: Tensor | npt.NDArray[Any]

    @classmethod
    def of(
        cls,
        fields: Any,
        known: Sequence[str],
        absent: Collection[str],
        names: Sequence[str] | None,
        channel_axis: int,
        num_grid_axes: int | None,
    ) -> "ArrayInput":
        """Return an array as the model takes it.

        Args:
            known: the model's fields.
            absent: those that the data lack.
            names: of the array's channels; None: as `known`.
            channel_axis: of a batch.
            num_grid_axes: None: not known, so there is a batch.

        Raises:
            ValueError: shape, type or names do not fit.
        """
        kind = fields if isinstance(fields, Tensor) else np.asarray(fields)
        is_number = (
            not (kind.is_complex() or kind.dtype == torch.bool)
            if isinstance(kind, Tensor)
            else kind.dtype.kind in "fiu"
        )
        if not is_number:
            raise ValueError(f"fields hold {kind.dtype}, expected real numbers")
        values = kind.detach() if isinstance(kind, Tensor) else torch.from_numpy(_plain(kind))
        values = values.to(torch.float32)
        num_axes = values.ndim if num_grid_axes is None else channel_axis + 1 + num_grid_axes
        has_samples = values.ndim == num_axes
        given = list(known if names is None else names)
        if names is not None:
            _check_names(given, known, absent)
        axis = channel_axis if has_samples else channel_axis - 1
        if values.ndim not in (num_axes, num_axes - 1) or values.shape[axis] != len(given):
            raise ValueError(_shape_text(tuple(values.shape), given, channel_axis, num_axes))
        require_samples(tuple(values.shape))
        values, axis = (values, axis) if has_samples else (values[None], channel_axis)
        order = tuple(known.index(name) for name in given)
        if order != tuple(range(len(known))):
            shape = [*values.shape]
            shape[axis] = len(known)
            whole = values.new_full(shape, torch.nan)
            whole.index_copy_(axis, torch.tensor(order, device=values.device), values)
            values = whole
        lacking = tuple(n for n in known if n in absent)
        return cls(values, has_samples, lacking, order, kind)

    def paired(self, leads: Sequence[float], is_list: bool) -> tuple[Tensor, Tensor, bool]:
        """Return samples and lead times of one length, and whether the answer has an axis of samples.

        Raises:
            ValueError: there are several of both, not as many.
        """
        times = torch.tensor(leads, dtype=torch.float32)
        count, samples = len(leads), len(self.values)
        if count == 1:
            return self.values, times.expand(samples), self.has_samples or is_list
        if samples == 1:
            return self.values.expand(count, *self.values.shape[1:]), times, True
        if count != samples:
            raise ValueError(
                f"got {samples} samples and {count} lead times: expected one lead time, one sample, or "
                "a lead time for each sample. For all leads of all samples, use xarray or a loop"
            )
        return self.values, times, True

    def answer(self, forecast: Tensor, axis: int) -> Any:
        """Return a forecast, whose channels are at `axis`, as the kind that was given."""
        if self.order != tuple(range(forecast.shape[axis])):
            wanted = torch.tensor(self.order, device=forecast.device)
            forecast = forecast.index_select(axis, wanted)
        if isinstance(self.kind, Tensor):
            dtype = self.kind.dtype if self.kind.is_floating_point() else torch.float32
            return forecast.to(self.kind.device, dtype)
        dtype_of = self.kind.dtype if self.kind.dtype.kind == "f" else np.dtype(np.float32)
        return forecast.cpu().numpy().astype(dtype_of, copy=False)


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array that torch takes: of the machine's byte order, no negative strides."""
    return np.ascontiguousarray(array, np.float32)


def _check_names(given: Sequence[str], known: Sequence[str], absent: Collection[str]) -> None:
    strangers = sorted(set(given) - set(known))
    twice = sorted({name for name in given if given.count(name) > 1})
    lacking = [name for name in known if name not in given and name not in absent]
    problems = []
    if strangers:
        problems.append(f"{', '.join(strangers)} is none of the model's fields")
    if twice:
        problems.append(f"{', '.join(twice)} occurs more than once")
    if lacking:
        problems.append(f"{', '.join(lacking)} is missing; if the data lack it, absent={lacking!r}")
    if problems:
        raise ValueError(
            f"names {', '.join(given)}: {'; '.join(problems)}. The model's fields, in any order, are "
            f"{', '.join(known)}"
        )


def _shape_text(
    shape: tuple[int, ...], given: Sequence[str], channel_axis: int, num_axes: int
) -> str:
    frames = ["frame"] * (channel_axis - 1)
    grid = {1: ["x"], 2: ["y", "x"], 3: ["z", "y", "x"]}.get(num_axes - channel_axis - 1, ["…"])
    axes = ", ".join([*frames, f"{len(given)} channels", *grid])
    return (
        f"fields have shape {shape}, expected [batch, {axes}], or [{axes}] for one sample; the channels "
        f"are {', '.join(given)}"
    )
