"""What a model was trained on, as its description records it, and how far an input is from that."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

# Two lead times are one if they differ by less than this share: float32 rounds by 6e-8.
SAME_TIME = 1e-4
# Root mean square of normalised values above which they are of other units, or another field.
FAR_FROM_TRAINING = 20.0
_LISTED = 6
_collected: ContextVar[list[str] | None] = ContextVar("warnings of a forecast", default=None)


class ForecastWarning(UserWarning):
    """An input that the model was not trained for; the forecast is made all the same."""


@dataclass(frozen=True)
class TrainedOn:
    """Facts about the training data; empty where an earlier version did not record them.

    Attributes:
        lead_times: in the data's unit of time, ascending.
        grids: of the datasets, `(y, x)` each.
        units: of each field, where all datasets agree.
        time_unit: of frames and leads; `1` if it is none, or not known.
        takes_any_grid: whether the network was trained on crops.
        offsets: of each dataset, numbers that were subtracted from fields.
    """

    lead_times: tuple[float, ...]
    grids: tuple[tuple[int, ...], ...]
    units: Mapping[str, str]
    time_unit: str
    takes_any_grid: bool
    offsets: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "TrainedOn":
        """Return the facts in a description of a trained network."""
        datasets = description.get("datasets", [])
        units: dict[str, set[str]] = {}
        for record in datasets:
            for name, unit in record.get("units", {}).items():
                units.setdefault(name, set()).add(unit)
        time_units = {record["time_unit"] for record in datasets if "time_unit" in record}
        leads = sorted({t for record in datasets for t in record.get("lead_times", [])})
        grids = [tuple(g) for record in datasets if (g := record.get("grid_shape"))]
        return cls(
            lead_times=tuple(leads),
            grids=tuple(dict.fromkeys(grids)),
            units={name: next(iter(found)) for name, found in units.items() if len(found) == 1},
            time_unit=time_units.pop() if len(time_units) == 1 else "1",
            takes_any_grid=bool(description.get("patch")),
            offsets=tuple(record.get("offset", {}) for record in datasets),
        )

    @property
    def num_dimensions(self) -> int | None:
        """Axes of the grid; None: not known."""
        return len(self.grids[0]) if self.grids else None

    @property
    def step(self) -> float | None:
        """The shortest lead time ahead; None: not known."""
        return next((lead for lead in self.lead_times if lead > 0), None)

    def offset(self) -> Mapping[str, float]:
        """The numbers to subtract from fields in physical units; warns if datasets differ in them."""
        distinct = [o for n, o in enumerate(self.offsets) if o not in self.offsets[:n]]
        if len(distinct) > 1:
            warn(
                f"in training, {distinct} was subtracted from the fields, depending on the dataset. "
                "Nothing is subtracted now: give offset={FIELD: NUMBER}, of the dataset that yours "
                "resembles, or offset={}"
            )
            return {}
        return distinct[0] if distinct else {}

    def check_leads(self, leads: Sequence[float], *, sees_lead: bool) -> None:
        """Warn of leads that were not trained on.

        Args:
            sees_lead: whether the network is told the lead; without, it knows one step alone.

        Raises:
            ValueError: a lead is negative or no number, or one that the network cannot make.
        """
        wrong = [lead for lead in leads if not 0 <= lead < float("inf")]
        if wrong:
            raise ValueError(
                f"lead_time {wrong[0]:g}: expected a time ahead{self._in_units()}, 0 or more. "
                "The model forecasts; it does not go back in time"
            )
        known = self.lead_times
        unseen = [x for x in leads if not any(_is_same(x, lead, self.step) for lead in known)]
        if not known or not unseen:
            return
        listed = ", ".join(f"{lead:g}" for lead in unseen[:_LISTED])
        if not sees_lead:
            raise ValueError(
                f"lead_time {listed}: the network sees no lead time, it forecasts one step of "
                f"{self.leads_in_words()}. Reach later times with rollout(fields, steps=…)"
            )
        warn(
            f"the model was never trained for the lead time {listed}: training had "
            f"{self.leads_in_words()}. Use one of these, or reach it in several steps (rollout)"
        )

    def leads_in_words(self) -> str:
        """Return the lead times of the training: `0.05 to 1, 20 of them, in s`."""
        if not self.lead_times:
            return "lead times that were not recorded"
        first, last = self.lead_times[0], self.lead_times[-1]
        count = len(self.lead_times)
        listed = ", ".join(f"{lead:g}" for lead in self.lead_times)
        return (
            listed if count <= _LISTED else f"{count} from {first:g} to {last:g}"
        ) + self._in_units()

    def _in_units(self) -> str:
        return "" if self.time_unit == "1" else f" {self.time_unit}"

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Warn of a grid that no dataset of the training had.

        Raises:
            ValueError: it has another number of axes.
        """
        if not self.grids:
            return
        trained = " and ".join(" x ".join(map(str, g)) for g in self.grids)
        given = " x ".join(map(str, grid))
        if len(grid) != self.num_dimensions:
            raise ValueError(
                f"the fields are on a grid of {given} points, but the model was trained on {trained}"
            )
        if grid not in self.grids and not self.takes_any_grid:
            warn(
                f"the fields are on a grid of {given} points, but the model was trained on {trained}. "
                "Interpolate them to that grid, or check the forecast against data of your grid"
            )


def check_finite(values: Tensor, valid: Tensor | None, fields: Sequence[str], axis: int) -> None:
    """Raise ValueError if normalised values, `[…, channel at axis, *grid]`, are not all numbers.

    Args:
        valid: where values count, bool of that shape; None: everywhere.
    """
    wrong = ~torch.isfinite(values)
    if valid is not None:
        wrong &= valid
    if not wrong.any():
        return
    first = wrong.nonzero()[0].tolist()
    name = fields[first.pop(axis)]
    count = int(wrong.select(axis, fields.index(name)).sum())
    raise ValueError(
        f"{name} has {count} values that are NaN or infinite in float32, the first at {first} (sample, "
        "…, grid point). The network needs a number at every point: fill them, mark them in the field's "
        f"mask if the model has one, or leave the field out (absent=[{name!r}])"
    )


def warn_of_strange_sizes(
    values: Tensor, fields: Sequence[str], absent: Sequence[str], constants: str, axis: int
) -> None:
    """Warn of fields whose normalised values are far from all that training can have had.

    Args:
        values: `[…, channel at axis, *grid]`, finite.
        constants: mean and deviation of the fields, in words.
    """
    others = [a for a in range(values.ndim) if a != axis]
    sizes = values.double().square().mean(dim=others).sqrt().tolist()
    strange = [
        f"{name} ({size:.2g})"
        for name, size in zip(fields, sizes, strict=True)
        if size > FAR_FROM_TRAINING and name not in absent
    ]
    if strange:
        warn(
            f"{', '.join(strange)}: that many standard deviations from the mean of the training. Check "
            f"the units, and the order of the fields. Trained on (mean ± deviation): {constants}"
        )


def _is_same(one: float, other: float, step: float | None) -> bool:
    return abs(one - other) <= SAME_TIME * (step or max(abs(one), abs(other)))


def warn(text: str) -> None:
    """Warn of a forecast's input, at the line outside of Pelagos that asked for the forecast."""
    collected = _collected.get()
    if collected is not None:
        collected.append(text)
        return
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("pelagos."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, ForecastWarning, stacklevel=level)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Give a list that takes the warnings of this thread's forecasts, which then are not shown."""
    found: list[str] = []
    before = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(before)
