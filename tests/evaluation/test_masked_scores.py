"""Scores of fields without values at some points, against numpy's masked arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.climatology import climatology
from pelagos.evaluation.forecasting.forecasts import evaluate_dataset
from pelagos.evaluation.forecasting.stability import roll_out
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.evaluation.measures.masked_scores import score, undefined
from pelagos.evaluation.measures.metrics import METRICS

SIDE, FRAMES, COUNT = 8, 4, 3
MEAN, STD = 285.0, 3.0


def fields(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Forecast and truth `[*shape, SIDE, SIDE]`, and where there are values."""
    rng = np.random.default_rng(4)
    forecast, truth = rng.normal(2, 1, (2, *shape, SIDE, SIDE))
    valid = rng.random((*shape[:-1], SIDE, SIDE)) > 0.4
    return torch.tensor(forecast), torch.tensor(truth), torch.tensor(valid)


def by_numpy(metric: str, forecast: Tensor, truth: Tensor, valid: Tensor) -> float:
    """Of one frame `[channel, y, x]`."""
    hidden = np.broadcast_to(~valid.numpy(), truth.shape).copy()
    if metric == "boundary_rmse":
        hidden[:, 1:-1, 1:-1] = True
    t = np.ma.masked_array(truth.numpy(), mask=hidden)
    d = np.ma.masked_array(forecast.numpy(), mask=hidden) - t
    variance = ((t - t.mean(axis=(1, 2), keepdims=True)) ** 2).mean()
    found = {
        "relative_l1": abs(d).sum() / abs(t).sum(),
        "relative_l2": np.sqrt((d**2).sum() / (t**2).sum()),
        "nrmse": np.sqrt((d**2).mean() / (t**2).mean()),
        "vrmse": np.sqrt((d**2).mean() / variance),
        "rmse": np.sqrt((d**2).mean()),
        "boundary_rmse": np.sqrt((d**2).mean()),
        "conserved_rmse": np.sqrt((d.mean(axis=(1, 2)) ** 2).mean()),
        "max_error": abs(d).max(),
    }
    return float(found.get(metric, np.nan))


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_score_is_that_of_the_points_with_values(metric: str) -> None:
    forecast, truth, valid = fields(2, 3, 2)
    found = score(metric, forecast, truth, valid, 2)
    assert found.shape == (2, 3)
    wanted = [
        [by_numpy(metric, forecast[b, t], truth[b, t], valid[b, t]) for t in range(3)]
        for b in range(2)
    ]
    np.testing.assert_allclose(found.numpy(), np.array(wanted), rtol=1e-12)
    marks = undefined(metric, truth, valid, 2, 1.0)
    np.testing.assert_array_equal(marks.numpy(), np.isnan(wanted))
    # other numbers at the other points change no bit
    hidden = ~valid[:, :, None].expand_as(truth)
    again = score(
        metric, forecast.masked_fill(hidden, 1e9), truth.masked_fill(hidden, -7.0), valid, 2
    )
    assert torch.equal(again.nan_to_num(-1), found.nan_to_num(-1))
    nothing = torch.zeros_like(valid)
    assert bool(score(metric, forecast, truth, nothing, 2).isnan().all())
    assert bool(undefined(metric, truth, nothing, 2, 1.0).all())
    everywhere = torch.ones_like(valid)
    plain = score(metric, forecast, truth, None, 2)
    if not metric.startswith(("frmse", "spectral")):
        torch.testing.assert_close(score(metric, forecast, truth, everywhere, 2), plain)


@pytest.mark.parametrize("sides", [(16,), (8, 8), (4, 5, 6)])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_lines_and_volumes_are_scored_like_planes(
    sides: tuple[int, ...], leading: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    forecast, truth = rng.normal(2, 1, (2, *leading, 2, *sides))
    valid = rng.random((*leading, *sides)) > 0.4
    given = [torch.tensor(values) for values in (forecast, truth, valid)]
    found = score("rmse", *given, len(sides))
    marks = undefined("vrmse", given[1], given[2], len(sides), 1.0)
    assert found.shape == marks.shape == leading
    squares = (forecast - truth) ** 2 * np.expand_dims(valid, len(leading))
    axes = tuple(range(len(leading), len(leading) + 1 + len(sides)))
    wanted = np.sqrt(squares.sum(axis=axes) / (2 * valid.sum(axis=axes[:-1])))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert not bool(marks.any())


def sea(fill: float) -> EvaluationData:
    """Temperature that cools by 1 % of its anomaly a frame, below clouds that move."""
    rng = np.random.default_rng(7)
    values = MEAN + STD * rng.normal(size=(COUNT, 1, SIDE, SIDE)) * 0.99 ** np.arange(
        FRAMES
    ).reshape(-1, 1, 1)
    clear = rng.random((COUNT, FRAMES, SIDE, SIDE)) > 0.3
    values = np.where(clear, values, fill)
    frames = torch.tensor(np.stack([(values - MEAN) / STD, clear], axis=2), dtype=torch.float32)

    def read(trajectory: int, at: object) -> Tensor:
        return frames[trajectory, list(at)]  # type: ignore[call-overload]

    return EvaluationData(
        name="sea",
        uri="memory://sea",
        fingerprint="",
        fields=("t", "mask"),
        present=(True, True),
        groups={"t": (0,)},
        num_frames=FRAMES,
        frame_interval=1.0,
        grid_shape=(SIDE, SIDE),
        read=read,
        to_physical=lambda x: (
            x * torch.tensor([STD, 1.0]).view(2, 1, 1) + torch.tensor([MEAN, 0.0]).view(2, 1, 1)
        ),
        mean_frame=torch.zeros(2, 1, 1),
        size=(MEAN, 1.0),
        masks={0: 1},
    )


def still(state: Tensor, lead_time: Tensor) -> Tensor:
    """Says that nothing changes, and 100 where the state has no value."""
    there = state[:, 1:] > 0.5
    return torch.cat([state[:, :1].where(there, 100.0), state[:, 1:]], dim=1)


def test_evaluations_do_not_depend_on_what_fills_the_gaps() -> None:
    found = [evaluate_dataset(still, sea(fill), range(COUNT), (1, 3)) for fill in (285.0, -9.9e3)]
    first, second = found
    for metric in METRICS:
        for method, scores in first.scores.items():
            np.testing.assert_array_equal(
                scores[metric], second.scores[method][metric], err_msg=f"{method} {metric}"
            )
    # the mean's relative L1, by numpy; float32 resolves 285 to 3e-5, which is 1e-5 of an error of 2
    data = sea(285.0)
    frames = torch.stack([data.read(i, range(FRAMES)) for i in range(COUNT)]).double().numpy()
    truth = np.ma.masked_array(frames[:, :, 0] * STD + MEAN, mask=frames[:, :, 1] == 0)
    wanted = abs(truth - MEAN).sum(axis=(2, 3)) / truth.sum(axis=(2, 3))
    np.testing.assert_allclose(
        first.scores["mean"]["relative_l1"][:, :, 0], np.asarray(wanted)[:, [1, 3]], rtol=1e-5
    )
    assert bool(first.undefined["frmse_low"].all())
    assert not first.undefined["vrmse"].any()
    assert bool(np.isfinite(first.spectra["truth"]).all())
    (example,) = first.examples
    hidden = frames[0, [1, 3], 1] == 0
    for values in (example.truth, example.forecasts["autoregressive"]):
        np.testing.assert_array_equal(np.isnan(values[:, 0]), hidden)
        assert bool(np.isfinite(values[:, 1]).all())


def test_long_rollouts_measure_the_points_with_values() -> None:
    data = sea(-9.9e3)
    found = roll_out(still, data, range(COUNT), 3)
    frames = torch.stack([data.read(i, [0]) for i in range(COUNT)])[:, 0].double().numpy()
    start = np.ma.masked_array(frames[:, 0] * STD + MEAN, mask=frames[:, 1] == 0)
    wanted = np.asarray((start**2).mean(axis=(1, 2)))
    for step in range(3):
        np.testing.assert_allclose(found.energy[:, step, 0], wanted, rtol=1e-6)
    np.testing.assert_allclose(found.spectral_distance, 0.0, atol=1e-4)


def test_the_mean_at_each_point_is_that_of_its_values() -> None:
    """A pattern that all trajectories share, below clouds; of the last point there is no value."""
    pattern = np.linspace(-1, 1, SIDE * SIDE).reshape(SIDE, SIDE)
    clear = np.random.default_rng(3).random((COUNT, FRAMES, SIDE, SIDE)) > 0.2
    clear[..., -1, -1] = False
    for fill in (0.0, -500.0):
        values = np.where(clear, pattern, fill)
        frames = torch.tensor(np.stack([values, clear], axis=2), dtype=torch.float32)

        def read(trajectory: int, at: object, frames: Tensor = frames) -> Tensor:
            return frames[trajectory, list(at)]  # type: ignore[call-overload]

        found = climatology(dataclasses.replace(sea(0.0), read=read), range(COUNT))[0].numpy()
        assert found[-1, -1] == 0  # the mean over all points, which is 0 here
        seen = clear.any(1).sum(0) > 1
        # each trajectory's pattern is about the mean of the points that it saw
        off = found[seen] - pattern[seen]
        assert abs(off).max() < 0.1
