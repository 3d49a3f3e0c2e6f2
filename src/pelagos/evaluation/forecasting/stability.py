"""Long rollouts: does a model that feeds on its own forecasts stay sane, and for how long?

A rollout may continue beyond the data's end, where no error can be computed. Still measurable are
whether values are finite, whether the energy stays where the physics keeps it, and whether the
spectrum keeps its shape (models that are stepped often either smooth it away or fill it with noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting import rollout
from pelagos.evaluation.forecasting.batches import measure_here
from pelagos.evaluation.forecasting.rollout import Predict
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.evaluation.measures.metrics import energy_spectrum

FloatArray = npt.NDArray[np.float64]
# A shell that the truth leaves empty to rounding says nothing of a forecast's shape.
_LEAST_SHARE = 1e-9
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Stability:
    """Rollouts of one dataset, of every trajectory, step by step.

    Attributes:
        times: physical time of each step since the last input frame, `[step]`.
        groups: names of the scored fields.
        energy: mean square over space, of a vector the sum over components, `[trajectory, step,
            group]`, physical units squared.
        true_energy: the same of the data, `[trajectory, frame, group]`, as far as it reaches.
        spectral_distance: mean over wave numbers of |log10 E(k) - log10 E_0(k)| to the initial
            frame's spectrum, `[trajectory, step, group]`: 1 is a factor of ten everywhere.
        true_distance: the same of the data.
        first_non_finite: for each trajectory the step whose frame is the first with a value that
            is not finite; None if all are.
    """

    dataset: str
    times: tuple[float, ...]
    groups: tuple[str, ...]
    energy: FloatArray
    true_energy: FloatArray
    spectral_distance: FloatArray
    true_distance: FloatArray
    first_non_finite: tuple[int | None, ...]

    @property
    def num_finite(self) -> int:
        """Trajectories whose rollout is finite to its end."""
        return sum(step is None for step in self.first_non_finite)

    def to_dict(self) -> dict[str, Any]:
        """Return times, quartiles over trajectories, and where values stopped to be finite."""
        return {
            "dataset": self.dataset,
            "times": list(self.times),
            "groups": list(self.groups),
            "first_non_finite_step": list(self.first_non_finite),
            "quartiles": {
                "energy": quartiles(self.energy),
                "true_energy": quartiles(self.true_energy),
                "spectral_distance": quartiles(self.spectral_distance),
                "true_spectral_distance": quartiles(self.true_distance),
            },
        }

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Return, of each field, medians of the energy ratio and of the spectral distances.

        The energy at the end is over that at the start (NaN for a field that starts at rest); the
        distances are the forecast's at the end and, for comparison, that of the data's last frame.
        """
        last, first = _median(self.energy[:, -1]), _median(self.true_energy[:, 0])
        distance, true = _median(self.spectral_distance[:, -1]), _median(self.true_distance[:, -1])
        return [
            (group, _share(last[i], first[i]), float(distance[i]), float(true[i]))
            for i, group in enumerate(self.groups)
        ]


def quartiles(values: FloatArray) -> list[list[list[float]]]:
    """Return lower quartile, median and upper quartile over trajectories, `[3, step, group]`."""
    finite = np.where(np.isfinite(values), values, np.inf)
    found: list[list[list[float]]] = np.quantile(
        finite, _QUARTILES, axis=0, method="higher"
    ).tolist()
    return found


def roll_out(
    predict: Predict,
    data: EvaluationData,
    trajectories: Sequence[int],
    num_steps: int,
    *,
    rollout_step: int = 1,
    input_frames: int = 1,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Stability:
    """Roll a model out for `num_steps` steps of `rollout_step` frames and keep its measures.

    Memory is that of twice `batch_size` trajectories of the data, and of one state.

    Raises:
        ValueError: trajectories too short to start from.
    """
    measurement = StabilityMeasurement(
        predict, data, trajectories, num_steps, rollout_step, input_frames, batch_size, device
    )
    (stability,) = measure_here([measurement])
    found: Stability = stability
    return found


@dataclass(frozen=True)
class StabilityMeasurement:
    """Rollouts of one dataset, batch by batch: arguments and errors as `roll_out`."""

    predict: Predict
    data: EvaluationData
    trajectories: Sequence[int]
    num_steps: int
    rollout_step: int = 1
    input_frames: int = 1
    batch_size: int = 8
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if len(self._frames) < self.input_frames:
            raise ValueError(
                f"a rollout on {self.data.name} starts from {self.input_frames} frames, "
                f"{self.rollout_step} apart, but its trajectories have {self.data.num_frames} "
                "frames"
            )

    @property
    def num_batches(self) -> int:
        return -(-len(self.trajectories) // self.batch_size)

    def read(self, batch: int) -> Tensor:
        """Return normalised frames `[B, T, C, *grid]`, 0 where they have no value."""
        start = batch * self.batch_size
        chosen = self.trajectories[start : start + self.batch_size]
        read = torch.stack([self.data.read(index, self._frames) for index in chosen])
        return self.data.filled(read)

    @torch.no_grad()
    def measure(self, batch: int, read: Tensor) -> StabilityPart:
        """Return the measures of a batch."""
        steps = range(1, self.num_steps + 1)
        truth = read.to(self.device)
        return _roll_out_batch(
            self.predict, self.data, truth, steps, self._lead_time, self.input_frames
        )

    def combine(self, parts: Sequence[StabilityPart]) -> Stability:
        """Return the measures, of the parts of all batches in order."""
        ends = torch.cat([part.first_non_finite for part in parts])
        return Stability(
            dataset=self.data.name,
            times=tuple(self._lead_time * step for step in range(1, self.num_steps + 1)),
            groups=tuple(self.data.groups),
            energy=_array([part.model[0] for part in parts]),
            true_energy=_array([part.truth[0] for part in parts]),
            spectral_distance=_array([part.model[1] for part in parts]),
            true_distance=_array([part.truth[1] for part in parts]),
            first_non_finite=tuple(int(step) if step > 0 else None for step in ends),
        )

    @property
    def _frames(self) -> range:
        return range(0, self.data.num_frames, self.rollout_step)

    @property
    def _lead_time(self) -> float:
        return self.rollout_step * self.data.frame_interval


@dataclass(frozen=True)
class StabilityPart:
    """Energy and spectral distance `[B, step, group]`; 0 where all values are finite."""

    model: tuple[Tensor, Tensor]
    truth: tuple[Tensor, Tensor]
    first_non_finite: Tensor


def _roll_out_batch(
    predict: Predict,
    data: EvaluationData,
    truth: Tensor,
    steps: range,
    lead_time: float,
    input_frames: int,
) -> StabilityPart:
    present = data.channel_mask.to(truth.device)
    last = input_frames - 1
    initial = _spectra(data, truth[:, last])[0]
    state = rollout.masked(rollout.state_at(truth, last, 1, input_frames), present)
    spectra, first = [], torch.zeros(len(truth), dtype=torch.int64)
    for step in steps:
        frame, state = rollout.advance(predict, state, lead_time, present)
        frame = data.filled(frame)  # the model's output at points without a value is not used
        is_bad = ~frame.flatten(1).isfinite().all(1).cpu()
        first = torch.where(is_bad & (first == 0), step, first)
        spectra.append(_spectra(data, frame))
    true_spectra = [_spectra(data, truth[:, i]) for i in range(last, truth.shape[1])]
    return StabilityPart(_measures(spectra, initial), _measures(true_spectra, initial), first)


def _measures(
    found: list[tuple[list[Tensor], Tensor]], initial: list[Tensor]
) -> tuple[Tensor, Tensor]:
    energies = torch.stack([energy for _, energy in found], 1)
    distances = torch.stack([_distance(spectra, initial) for spectra, _ in found], 1)
    return energies.cpu(), distances.cpu()


def _spectra(data: EvaluationData, frame: Tensor) -> tuple[list[Tensor], Tensor]:
    """Energy spectra and mean squares of each group of a frame `[B, C, *grid]`.

    Spectra are `[B, k]` for each group, mean squares `[B, group]`, of physical values; the
    latter over the points with values.
    """
    physical, valid = data.to_physical(data.filled(frame)), data.valid(frame)
    parts = [physical[:, list(channels)] for channels in data.groups.values()]
    spectra = [energy_spectrum(part, data.num_dimensions).sum(1) for part in parts]
    if valid is None:
        return spectra, _energy(spectra)
    squares = physical.double().square().where(valid, 0.0).flatten(2).sum(-1)
    means = squares / valid.flatten(2).sum(-1).clamp_min(1)
    groups = data.groups.values()
    return spectra, torch.stack([means[:, list(channels)].sum(-1) for channels in groups], -1)


def _energy(spectra: list[Tensor]) -> Tensor:
    """`[B, group]`: twice the sum over shells, the mean square of the shells' modes."""
    return torch.stack([2.0 * spectrum.sum(-1) for spectrum in spectra], -1)


def _distance(spectra: list[Tensor], initial: list[Tensor]) -> Tensor:
    """`[B, group]`: mean over the shells that hold something of the ratio's decades."""
    found = []
    for spectrum, start in zip(spectra, initial, strict=True):
        floor = _LEAST_SHARE * start.sum(-1, keepdim=True)
        counts = (start > floor).double()
        decades = (spectrum.clamp_min(floor).log10() - start.clamp_min(floor).log10()).abs()
        found.append((decades * counts).sum(-1) / counts.sum(-1).clamp_min(1.0))
    return torch.stack(found, -1)


def _share(value: float, of: float) -> float:
    return float(value / of) if of > 0 else np.nan


def _array(parts: list[Tensor]) -> FloatArray:
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float64)


def _median(values: FloatArray) -> FloatArray:
    return np.asarray(np.median(np.where(np.isfinite(values), values, np.inf), axis=0))
