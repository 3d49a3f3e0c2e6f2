"""Long rollouts and ensembles of known forecasters, against what they do in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.evaluation.test_evaluate import INTERVAL, exact, view
from torch import Tensor

from pelagos.evaluation import Provenance, evaluate_dataset, write_report
from pelagos.evaluation.forecasting.rollout import partitions
from pelagos.evaluation.forecasting.stability import roll_out


def test_the_energy_of_a_decay_falls_beyond_the_end_of_the_data() -> None:
    found = roll_out(exact, view(), range(3), 40, batch_size=2)
    assert found.energy.shape == (3, 40, 2)
    assert found.true_energy.shape == (3, 5, 2)
    assert found.num_finite == 3
    # a sine of amplitude 1 + trajectory has this mean square; u falls as exp(-t), u^2 twice as fast
    for trajectory, step in ((0, 1), (2, 40)):
        expected = (1 + trajectory) ** 2 / 2 * math.exp(-2 * INTERVAL * step)
        assert found.energy[trajectory, step - 1, 0] == pytest.approx(expected, rel=1e-3)
    # one wave number is all there is: its energy falls by 2 t / ln 10 decades
    assert found.spectral_distance[1, 9, 1] == pytest.approx(
        2 * 10 * INTERVAL / math.log(10), rel=1e-3
    )
    assert found.true_distance[0, 0, 0] == 0
    (_, ratio, _, _), _ = found.rows()
    assert ratio == pytest.approx(math.exp(-2 * INTERVAL * 40), rel=1e-3)


def test_the_first_step_that_is_not_finite_is_told_of_each_trajectory(tmp_path: Path) -> None:
    def doubles(frames: Tensor, lead_time: Tensor) -> Tensor:
        # float32 holds up to 2^128; larger trajectories leave it earlier
        return frames * 2.0**20

    data = view()
    found = roll_out(doubles, data, range(3), 12, batch_size=2)
    largest = [data.read(i, [0]).abs().max().item() for i in range(3)]
    expected = [next(n for n in range(1, 13) if math.log2(x) + 20 * n >= 128) for x in largest]
    assert list(found.first_non_finite) == expected
    assert found.num_finite == 0
    evaluation = evaluate_dataset(exact, data, range(3), (1, 2))
    report, numbers = write_report([evaluation], Provenance("run", 1, "m"), tmp_path, [found])
    assert "0 of 3 trajectories are finite to the end" in report.read_text()
    assert numbers["stability"][0]["first_non_finite_step"] == expected
    assert (tmp_path / "figures" / "decaying-waves-stability.png").stat().st_size > 0


def test_too_short_trajectories_are_refused() -> None:
    with pytest.raises(ValueError, match="starts from 4 frames, 2 apart, but .* have 5 frames"):
        roll_out(exact, view(), range(3), 2, rollout_step=2, input_frames=4)


@pytest.mark.parametrize(("whole", "most"), [(1, 4), (4, 8), (4, 100), (5, 6), (40, 9)])
def test_partitions_are_different_ways_to_the_whole(whole: int, most: int) -> None:
    ways = partitions(whole, most)
    assert ways == partitions(whole, most)
    assert len(set(ways)) == len(ways) == min(most, 2 ** (whole - 1))
    assert all(sum(way) == whole and min(way) >= 1 for way in ways)
    assert ways[0] == (whole,)
    if whole > 1:
        assert ways[1] == (1,) * whole


def test_an_ensemble_is_the_mean_of_its_ways() -> None:
    """Each step of this forecaster is off by one, however long: a way of n parts is off by n."""

    def off_by_one(frames: Tensor, lead_time: Tensor) -> Tensor:
        return frames + 1.0

    data = view()
    found = evaluate_dataset(off_by_one, data, [0], [3], ensemble_size=4, num_examples=1)
    parts = [len(way) for way in ((3,), (1, 1, 1), (2, 1), (1, 2))]
    mean = sum(parts) / len(parts)
    (example,) = found.examples
    ensemble = torch.from_numpy(example.forecasts["ensemble"])[0, 1]
    initial = torch.from_numpy(example.initial)[1]
    std = 0.4  # what one is in physical units of velocity-x
    torch.testing.assert_close(ensemble, initial + mean * std, rtol=0, atol=1e-5)
    assert "ensemble" in found.forecast_methods


def test_an_exact_flow_map_needs_no_ensemble_and_loses_nothing_by_it() -> None:
    found = evaluate_dataset(exact, view(), range(2), [2, 4], ensemble_size=5)
    scores = [found.scores["ensemble"][metric] for metric in ("relative_l1", "rmse")]
    assert all(float(score.max()) < 1e-5 for score in scores)
    assert "ensemble" not in evaluate_dataset(exact, view(), range(2), [2]).methods
