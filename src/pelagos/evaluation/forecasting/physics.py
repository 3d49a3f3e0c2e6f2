"""Do forecasts obey the equation? Residuals, constraints and conserved quantities, by lead time.

The equations are the data's, and known here only as a protocol. All numbers are shares of a norm of
the data, so that 0 is right and 1 as wrong as all that happens there; how far the data itself is from
0, because its frames are discrete in time and space, is given next to them as `truth`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.view import EvaluationData

FloatArray = npt.NDArray[np.float64]
TRUTH = "truth"
# Above this residual of its own, the data is too coarse in time or space to judge a forecast by.
UNRESOLVED = 0.5


class Physics(Protocol):
    """A dataset's equation applied to frames `[batch, channel, y, x]` in physical units."""

    @property
    def name(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def num_frames(self) -> int:
        """Consecutive frames that one residual takes."""
        ...

    def residuals(
        self, frames: Tensor, data: Tensor, interval: float, trajectories: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """Of `[batch, num_frames, channel, y, x]`, name to `[batch]`."""
        ...

    def constraints(
        self, frame: Tensor, data: Tensor, trajectories: Sequence[int]
    ) -> Mapping[str, Tensor]: ...
    def drifts(
        self, frame: Tensor, initial: Tensor, trajectories: Sequence[int]
    ) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class PhysicsScores:
    """Every number of one dataset.

    `scores[method][quantity]` is `[trajectory, lead]`; the method `truth` is the data itself.
    Quantities are named `residual/momentum`, `constraint/divergence`, `drift/mass`. A residual
    at a lead that has too few frames before it is NaN for all trajectories, one of a trajectory
    that does not change there NaN or infinite in the data.
    """

    name: str
    formula: str
    lead_steps: tuple[int, ...]
    scores: dict[str, dict[str, FloatArray]]

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(self.scores[TRUTH])

    @property
    def methods(self) -> tuple[str, ...]:
        """`truth` first, then the forecasts."""
        return tuple(self.scores)

    def quantile(self, method: str, quantity: str, q: float = 0.5) -> FloatArray:
        """A quantile over trajectories, `[lead]`; NaN at leads where the data has no number.

        Scores that are not finite count as infinitely bad, but those of trajectories of which the
        data itself has none are left out.
        """
        values = self.scores[method][quantity]
        defined = np.isfinite(self.scores[TRUTH][quantity])
        finite = np.where(np.isfinite(values), values, np.inf)
        columns = [finite[defined[:, i], i] for i in range(finite.shape[1])]
        return np.array([np.quantile(c, q, method="higher") if c.size else np.nan for c in columns])

    def rows(self) -> list[tuple[str, int, dict[str, float], bool]]:
        """Return each quantity at the longest lead, with the median of every method there.

        A row is the quantity, the lead step, the medians, and whether the data's own is small
        enough to judge by.
        """
        last = self.lead_steps[-1]
        found = []
        for quantity in self.quantities:
            medians = {m: float(self.quantile(m, quantity)[-1]) for m in self.methods}
            found.append((quantity, last, medians, medians[TRUTH] <= UNRESOLVED))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return quartiles `[lead]` and every trajectory's number `[trajectory][lead]`."""
        return {
            "equation": self.name,
            "formula": self.formula,
            "scores": {
                method: {
                    quantity: {
                        "lower_quartile": self.quantile(method, quantity, 0.25).tolist(),
                        "median": self.quantile(method, quantity).tolist(),
                        "upper_quartile": self.quantile(method, quantity, 0.75).tolist(),
                        "per_trajectory": values.tolist(),
                    }
                    for quantity, values in by_quantity.items()
                }
                for method, by_quantity in self.scores.items()
            },
        }


@dataclass
class PhysicsMeasure:
    """Accumulates the scores of one dataset over batches of trajectories."""

    physics: Physics
    leads: tuple[int, ...]
    rollout_step: int
    parts: dict[str, dict[str, list[FloatArray]]] = field(default_factory=dict)

    def leads_needed(self) -> tuple[int, ...]:
        """The lead steps at which forecasts are needed: those scored and those before them."""
        before = range(self.physics.num_frames)
        steps = {lead - k * self.rollout_step for lead in self.leads for k in before}
        return tuple(sorted(step for step in steps if step > 0))

    def add(
        self,
        data: EvaluationData,
        truth: Tensor,
        forecasts: Mapping[str, Tensor],
        forecast_leads: Sequence[int],
        start: int,
        trajectories: Sequence[int],
    ) -> None:
        """Score one batch.

        Args:
            truth: normalised frames `[B, T, C, y, x]`; forecasts start from frame `start`.
            forecasts: normalised, by method, at `forecast_leads`.
        """
        batch = _Batch(self, data, truth, start, trajectories)
        self._append(TRUTH, batch.scores({lead: truth[:, start + lead] for lead in forecast_leads}))
        for method, values in forecasts.items():
            frames = dict(zip(forecast_leads, values.unbind(1), strict=True))
            self._append(method, batch.scores(frames, is_one_step=method == "one_step"))

    def _append(self, method: str, scores: Mapping[str, Tensor]) -> None:
        by_quantity = self.parts.setdefault(method, {})
        for quantity, values in scores.items():
            by_quantity.setdefault(quantity, []).append(values.cpu().numpy())

    def take(self, parts: Mapping[str, Mapping[str, Sequence[FloatArray]]]) -> None:
        """Add the scores of further batches, as `parts` of another holds them."""
        for method, scores in parts.items():
            by_quantity = self.parts.setdefault(method, {})
            for quantity, values in scores.items():
                by_quantity.setdefault(quantity, []).extend(values)

    def finish(self) -> PhysicsScores:
        return PhysicsScores(
            name=self.physics.name,
            formula=self.physics.formula,
            lead_steps=self.leads,
            scores={
                method: {name: np.concatenate(parts) for name, parts in by_quantity.items()}
                for method, by_quantity in self.parts.items()
            },
        )


@dataclass(frozen=True)
class _Batch:
    measure: PhysicsMeasure
    data: EvaluationData
    truth: Tensor
    start: int
    trajectories: Sequence[int]

    def scores(
        self, frames: Mapping[int, Tensor], *, is_one_step: bool = False
    ) -> dict[str, Tensor]:
        """`[B, lead]` of every quantity, of frames by lead.

        `is_one_step`: each frame follows the true ones, not the forecasts, before it.
        """
        columns = [dict(self._at(lead, frames, is_one_step)) for lead in self.measure.leads]
        names = {name: None for column in columns for name in column}
        nothing = self.truth.new_full((len(self.truth),), torch.nan, dtype=torch.float64)
        return {name: torch.stack([c.get(name, nothing) for c in columns], 1) for name in names}

    def _at(
        self, lead: int, frames: Mapping[int, Tensor], is_one_step: bool
    ) -> Iterator[tuple[str, Tensor]]:
        physics, step = self.measure.physics, self.measure.rollout_step
        earlier = [lead - k * step for k in range(physics.num_frames - 1, 0, -1)]
        data = self._physical(self.truth[:, self.start + lead])
        now = self._physical(frames[lead])
        if all(self.start + past >= 0 for past in earlier):
            before = [
                self.truth[:, self.start + past] if is_one_step or past <= 0 else frames[past]
                for past in earlier
            ]
            window = torch.stack([*map(self._physical, before), now], 1)
            true = [self._physical(self.truth[:, self.start + past]) for past in earlier]
            interval = step * self.data.frame_interval
            found = physics.residuals(
                window, torch.stack([*true, data], 1), interval, self.trajectories
            )
            yield from ((f"residual/{name}", value) for name, value in found.items())
        held = physics.constraints(now, data, self.trajectories)
        yield from ((f"constraint/{name}", value) for name, value in held.items())
        initial = self._physical(self.truth[:, self.start])
        drifts = physics.drifts(now, initial, self.trajectories)
        yield from ((f"drift/{name}", value) for name, value in drifts.items())

    def _physical(self, frame: Tensor) -> Tensor:
        return self.data.to_physical(frame).double()
