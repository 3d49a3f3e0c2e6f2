"""Forecasts from models whose answer is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pelagos.evaluation.forecasting import rollout

INTERVAL = 0.05
PRESENT = torch.tensor([True, True])[:, None, None]
BOTH = (2, 3)


def decay(frames: Tensor, lead_time: Tensor) -> Tensor:
    """u' = -u, solved exactly."""
    return frames * torch.exp(-lead_time)[:, None, None, None]


def test_direct_and_autoregressive_agree_for_an_exact_flow_map():
    initial = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    leads = (1, 4, 10)
    direct = rollout.direct(decay, initial, leads, INTERVAL, PRESENT)
    fed_back = rollout.autoregressive(decay, initial, leads, INTERVAL, PRESENT)
    expected = torch.stack([initial * math.exp(-0.05 * k) for k in leads], dim=1)
    torch.testing.assert_close(direct, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(fed_back, expected, rtol=1e-13, atol=0)


def test_autoregressive_takes_as_many_steps_as_it_should():
    calls: list[Tensor] = []

    def count(frames: Tensor, lead_time: Tensor) -> Tensor:
        calls.append(lead_time)
        return frames + 1

    initial = torch.zeros(2, 2, 4, 4)
    got = rollout.autoregressive(count, initial, (2, 6), INTERVAL, PRESENT, rollout_step=2)
    assert got[:, :, 0, 0, 0].tolist() == [[1.0, 3.0], [1.0, 3.0]]
    assert len(calls) == 3
    assert torch.equal(torch.stack(calls), torch.full((3, 2), 2 * INTERVAL))


def test_one_step_starts_from_the_true_previous_frame():
    truth = torch.arange(7.0).reshape(1, 7, 1, 1, 1).expand(2, 7, 2, 4, 4)
    got = rollout.one_step(lambda x, t: 10 * x, truth, (2, 6), INTERVAL, PRESENT, rollout_step=2)
    assert got[0, :, 0, 0, 0].tolist() == [0.0, 40.0]


def test_persistence_repeats_the_initial_frame():
    initial = torch.randn(2, 2, 4, 4)
    got = rollout.persistence(initial, (1, 5, 9))
    assert got.shape == (2, 3, 2, 4, 4)
    assert torch.equal(got[:, 2], initial)


def test_absent_fields_go_in_and_come_out_as_zero():
    present = torch.tensor([True, False])[:, None, None]
    seen: list[Tensor] = []

    def noisy(frames: Tensor, lead_time: Tensor) -> Tensor:
        seen.append(frames)
        return frames + 7.0

    initial = torch.randn(2, 2, 4, 4)
    got = rollout.autoregressive(noisy, initial, (1, 2, 3), INTERVAL, present)
    assert all(float(frames[:, 1].abs().max()) == 0.0 for frames in seen)
    assert float(got[:, :, 1].abs().max()) == 0.0
    torch.testing.assert_close(got[:, 2, 0], initial[:, 0] + 21.0)


@pytest.mark.parametrize(("leads", "step"), [((1, 4), 2), ((0, 2), 1), ((2,), 0)])
def test_lead_steps_off_the_rollout_are_refused(leads: tuple[int, ...], step: int):
    with pytest.raises(ValueError, match="positive multiples of rollout_step"):
        rollout.check_rollout_step(leads, step)


def test_a_forecast_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="as many channels as its input"):
        rollout.direct(lambda x, t: x[:, :1], torch.zeros(1, 2, 4, 4), (1,), INTERVAL, PRESENT)


def test_states_of_several_frames_move_on_by_one_frame_each_step():
    """Fibonacci: the next frame is the sum of the last two, and every method knows it."""

    def add(state: Tensor, lead_time: Tensor) -> Tensor:
        assert state.shape[1] == 2
        return state[:, 0] + state[:, 1]

    numbers = torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0])
    truth = numbers.view(1, -1, 1, 1, 1).expand(2, -1, 1, 4, 4)
    present = torch.ones(1, 1, 1, dtype=torch.bool)
    start = rollout.state_at(truth, 1, 1, 2)
    leads = [1, 3, 5]
    forecast = rollout.autoregressive(add, start, leads, 0.1, present)
    assert forecast[0, :, 0, 0, 0].tolist() == [2.0, 5.0, 13.0]
    stepped = rollout.one_step(add, truth, leads, 0.1, present, input_frames=2)
    assert torch.equal(stepped, forecast)
    # every second frame: 1, 2, 5 and so on
    strided = rollout.state_at(truth, 4, 2, 3)
    assert strided[0, :, 0, 0, 0].tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize("sides", [(5,), (3, 4, 5)])
@pytest.mark.parametrize("input_frames", [1, 2])
def test_absent_fields_of_lines_and_volumes_stay_zero(sides: tuple[int, ...], input_frames: int):
    """As many frames as channels and points: the mask must find the channels by itself."""
    present = torch.tensor([True, False]).view(-1, *(1,) * len(sides))
    truth = torch.randn(2, 5, 2, *sides)

    def shift(state: Tensor, lead_time: Tensor) -> Tensor:
        last = state if input_frames == 1 else state[:, -1]
        assert last.shape == (2, 2, *sides)
        assert not last[:, 1].any()
        return last + 1.0

    start = rollout.state_at(truth, input_frames - 1, 1, input_frames)
    forecast = rollout.autoregressive(shift, start, (1, 3), INTERVAL, present)
    assert forecast.shape == (2, 2, 2, *sides)
    assert not forecast[:, :, 1].any()
    torch.testing.assert_close(forecast[:, 1, 0], truth[:, input_frames - 1, 0] + 3.0)
