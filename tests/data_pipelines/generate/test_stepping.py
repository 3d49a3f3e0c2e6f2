"""Marching in time, on equations whose solution and number of steps are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate.stepping import (
    MAX_STEPS_PER_FRAME,
    check_times,
    march,
    per_trajectory,
)


class Clockwork:
    """State: the time that has passed, [batch, 1, 1, 1]; notes what it is asked and told.

    The rate of trajectory i is `rates[i]`, or `rates[i](clock)`.
    """

    def __init__(self, *rates: Any) -> None:
        self.rates = rates
        self.sizes: list[list[float]] = [[] for _ in rates]
        self.starts: list[list[float]] = [[] for _ in rates]

    def prepare(self, state: Tensor, numbers: list[int], clocks: list[float]) -> Any:
        assert len(state) == len(numbers) == len(clocks)
        rates = [self.rates[i] for i in numbers]
        found = [r(clock) if callable(r) else r for r, clock in zip(rates, clocks, strict=True)]
        return torch.tensor(numbers), torch.tensor(found, dtype=torch.float64)

    def step(
        self, state: Tensor, auxiliary: Tensor, dt: Tensor, numbers: list[int], clocks: list[float]
    ) -> Tensor:
        assert auxiliary.tolist() == numbers
        for i, size, clock in zip(numbers, dt.tolist(), clocks, strict=True):
            self.sizes[i].append(size)
            self.starts[i].append(clock)
        return state + dt.view(-1, 1, 1, 1)

    def march(self, times: list[float], cfl: float = 0.5, max_step: float | None = None) -> Tensor:
        state = torch.zeros(len(self.rates), 1, 1, 1, dtype=torch.float64)
        parts = {"prepare": self.prepare, "step": self.step, "frame": lambda state: state}
        return march(state, times, cfl=cfl, max_step=max_step, **parts)  # type: ignore[arg-type]


def test_steps_are_equal_parts_of_the_time_to_the_next_frame() -> None:
    """At most cfl / rate each: ceil(gap rate / cfl) of them, and one where nothing moves."""
    work = Clockwork(3.2, 0.0, 0.5)
    frames = work.march([2.0, 3.0, 5.0])
    assert frames.shape == (3, 3, 1, 1, 1)
    counts = [(7, 13), (1, 1), (1, 2)]  # 1 x 3.2 / 0.5 = 6.4, 2 x 3.2 / 0.5 = 12.8, 2 x 0.5 / 0.5
    for sizes, starts, (first, second) in zip(work.sizes, work.starts, counts, strict=True):
        expected = [1.0 / first] * first + [2.0 / second] * second
        assert sizes == pytest.approx(expected, rel=1e-12)
        clocks = [2.0 + sum(expected[:n]) for n in range(len(expected))]
        assert starts == pytest.approx(clocks, rel=1e-12)
        assert starts[first] == 3.0  # exactly, whatever the steps before add up to
    assert frames.flatten(1).tolist() == [pytest.approx([0.0, 1.0, 3.0], rel=1e-12)] * 3


@pytest.mark.parametrize(
    ("rate", "max_step", "count"),
    [(0.0, 0.3, 4), (4.0, 0.3, 8), (1.0, 0.3, 4), (1.0, 9.0, 2), (3.0, 1 / 6, 6), (5.0, 0.1, 10)],
)
def test_steps_are_bounded_by_the_rate_and_by_a_size(
    rate: float, max_step: float, count: int
) -> None:
    """What divides up to rounding gets no step more."""
    work = Clockwork(rate)
    work.march([0.0, 1.0], max_step=max_step)
    assert len(work.sizes[0]) == count


def test_a_rate_is_asked_before_every_step() -> None:
    work = Clockwork(lambda clock: 1.0 if clock < 0.5 else 4.0)
    work.march([0.0, 1.0])
    # two halves at first; half of the time is left when the rate is 4: parts of 1/8
    assert work.sizes[0] == [0.5, 0.125, 0.125, 0.125, 0.125]


@pytest.mark.parametrize("lost", [math.nan, math.inf, 1.5 * MAX_STEPS_PER_FRAME])
def test_a_trajectory_that_is_lost_is_nan_from_there_on_and_holds_up_none(lost: float) -> None:
    times = [0.0, 1.0, 2.0, 3.0]
    work = Clockwork(1.0, lambda clock: lost if clock >= 1.0 else 0.3, 0.7)
    frames = work.march(times, cfl=1.0).flatten(1)
    assert frames[1, :2].tolist() == [0.0, 1.0]
    assert frames[1, 2:].isnan().all()
    assert work.sizes[1] == [1.0, 0.0]  # its state is left as it is
    for i, rate in ((0, 1.0), (2, 0.7)):
        alone = Clockwork(rate)
        assert torch.equal(alone.march(times, cfl=1.0).flatten(1)[0], frames[i])
        assert (alone.sizes[0], alone.starts[0]) == (work.sizes[i], work.starts[i])
    assert frames[:, 3].isnan().tolist() == [False, True, False]


def test_the_most_steps_to_a_frame_are_still_taken() -> None:
    """A limit that is met is no loss; here it is asked once, and then the end is near."""
    for excess, is_lost in ((0.0, False), (1.0, True)):
        rates = iter([MAX_STEPS_PER_FRAME + excess, 0.0])
        work = Clockwork(lambda clock, rates=rates: next(rates))
        frames = work.march([0.0, 1.0], cfl=1.0)
        assert bool(frames[0, 1].isnan()) == is_lost


def test_one_time_is_the_state_that_was_given() -> None:
    work = Clockwork(1.0, 1.0)
    assert work.march([4.0]).flatten().tolist() == [0.0, 0.0]
    assert work.sizes == [[], []]


def test_steps_of_a_complex_state_are_real() -> None:
    """u' = i u from 1: on the unit circle."""
    state = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
    frames = march(
        state,
        [0.0, math.pi],
        cfl=0.01,
        prepare=lambda state, _numbers, _clocks: (state, torch.ones(1)),
        step=lambda state, _aux, dt, _numbers, _clocks: state * torch.exp(1j * dt),
        frame=lambda state: state.real,
    )
    assert frames.dtype == torch.float64
    assert frames.flatten().tolist() == pytest.approx([1.0, -1.0], abs=1e-12)


def test_what_cannot_be_marched_is_refused() -> None:
    with pytest.raises(ValueError, match="Got no times"):
        Clockwork(1.0).march([])
    for times, pair in (([0.0, 1.0, 1.0], "1.0 then 1.0"), ([2.0, 1.5, 3.0], "2.0 then 1.5")):
        with pytest.raises(ValueError, match=f"Got times {pair}; times must strictly increase"):
            Clockwork(1.0).march(times)
    with pytest.raises(ValueError, match="then nan"):
        check_times([0.0, math.nan])
    for cfl in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"Got cfl={cfl}; the Courant number"):
            Clockwork(1.0).march([0.0, 1.0], cfl=cfl)


def test_a_coefficient_is_one_number_or_one_of_each_trajectory() -> None:
    like = torch.zeros(3, 2, 4, 4, dtype=torch.complex64)
    one = per_trajectory(0.5, like, "viscosity")
    assert (one.tolist(), one.dtype) == ([0.5] * 3, torch.float32)
    each = per_trajectory(torch.tensor([1.0, 2.0, 3.0]).double(), like, "viscosity")
    assert (each.tolist(), each.dtype) == ([1.0, 2.0, 3.0], torch.float32)
    for wrong in (torch.ones(2), torch.ones(1), torch.ones(3, 1)):
        told = rf"Got viscosity of shape \({str(tuple(wrong.shape))[1:-1]}\); .* shape \(3,\), is"
        with pytest.raises(ValueError, match=told):
            per_trajectory(wrong, like, "viscosity")
