"""The mean at every grid point: a pattern where the data has one, one value where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation import EvaluationData, evaluate_dataset
from pelagos.evaluation.conclusions.verdicts import judge
from pelagos.evaluation.forecasting.climatology import MOST_TRAJECTORIES, climatology

SIDES, NOISE = (10, 12), 4.0


@dataclass
class EarthSpec:
    name: str = "earth"
    frame_interval: float = 1.0
    grid_shape: tuple[int, ...] = SIDES
    constant_fields: dict[str, float] = field(default_factory=dict)


@dataclass
class Earth:
    """Temperature that falls from row to row by `slope`, and noise that each frame draws anew."""

    slope: float
    spec: EarthSpec = field(default_factory=EarthSpec)
    uri: str = "memory://earth"
    fingerprint: str = "e"
    num_frames: int = 4
    field_names: tuple[str, ...] = ("temperature",)
    reads: int = 0

    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[np.float32]:
        self.reads += len(frames)
        noise = np.random.default_rng(trajectory).normal(size=(self.num_frames, 1, *SIDES))
        return (280.0 + self.pattern + NOISE * noise[list(frames)]).astype(np.float32)

    @property
    def pattern(self) -> npt.NDArray[np.float64]:
        rows = np.arange(SIDES[0]) - (SIDES[0] - 1) / 2
        return np.repeat(-self.slope * rows[:, None], SIDES[1], axis=1)


def view(dataset: Earth) -> EvaluationData:
    statistics = {"temperature": {"mean": 280.0, "std": 10.0}}
    channels = Channels.of(dataset, Normalization(("temperature",), (270.0,), (20.0,)))
    return EvaluationData.from_dataset(dataset, channels, statistics=statistics)


def in_kelvin(data: EvaluationData, trajectories: Sequence[int]) -> npt.NDArray[np.float64]:
    return np.asarray(data.to_physical(climatology(data, trajectories))[0].double())


def test_a_pattern_is_found_and_shrunk_by_what_chance_may_have_drawn() -> None:
    dataset = Earth(slope=3.0)
    found = in_kelvin(view(dataset), range(16))
    means = np.stack([dataset.read_frames(i, range(4))[:, 0].mean(0) for i in range(16)])
    patterns = means - means.mean((1, 2), keepdims=True)
    mean = patterns.mean(0)
    chance = patterns.var(axis=0, ddof=1).mean() / 16
    expected = 280.0 + (1 - chance / mean.var()) * mean
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - 280.0 - dataset.pattern).std() < 1.1 * NOISE / np.sqrt(16 * 4)


def test_without_a_pattern_it_is_one_value_even_from_few_trajectories() -> None:
    data = view(Earth(slope=0.0))
    for count in (4, 16):
        by_chance = np.sqrt(NOISE**2 / (4 * count))  # what a plain mean over them would vary by
        assert in_kelvin(data, range(count)).std() < 0.3 * by_chance
    np.testing.assert_allclose(in_kelvin(data, [3]), 280.0, rtol=1e-6)
    np.testing.assert_allclose(in_kelvin(data, []), 280.0, rtol=1e-6)


def test_it_reads_a_bounded_number_of_frames() -> None:
    dataset = Earth(slope=1.0)
    climatology(view(dataset), range(100, 1000))
    assert dataset.reads == 4 * MOST_TRAJECTORIES


def test_a_model_that_knows_less_than_the_pattern_does_not_beat_the_mean() -> None:
    """A forecast of half of the pattern is better than one value, and is no forecast."""
    dataset = Earth(slope=3.0)
    data = view(dataset)
    half = data.mean_frame + 0.5 * (climatology(data, range(32)) - data.mean_frame)
    for mean_frame, outcome in (
        (data.mean_frame, "better"),
        (climatology(data, range(32)), "worse"),
    ):
        evaluation = evaluate_dataset(
            lambda x, t: half.expand_as(x),
            replace(data, mean_frame=mean_frame),
            range(100, 120),
            (1, 2),
            num_examples=0,
        )
        leads = judge(evaluation).leads
        assert [lead.against["mean"].outcome for lead in leads] == [outcome] * 2
    # noise over the deviation of pattern and noise
    expected = NOISE / np.sqrt(NOISE**2 + dataset.pattern.var())
    vrmse = evaluation.mean_over_groups("mean", "vrmse")
    assert vrmse == pytest.approx([expected] * 2, rel=0.05)
