"""Batches are read once each, one ahead and no further, and their parts put together in order."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.batches import combined, measure_here, units_of
from pelagos.evaluation.forecasting.forecasts import ForecastMeasurement, evaluate_dataset
from pelagos.evaluation.forecasting.view import EvaluationData

NUM_FRAMES, NUM_TRAJECTORIES = 4, 6


class Watched:
    """A dataset of noise that notes which trajectories are read, and by which thread."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()
        self.begun = [threading.Event() for _ in range(NUM_TRAJECTORIES)]
        draw = torch.Generator().manual_seed(0)
        self.frames = torch.randn(NUM_TRAJECTORIES, NUM_FRAMES, 1, 8, 8, generator=draw)
        self.data = EvaluationData(
            name="noise",
            uri="noise",
            fingerprint="",
            fields=("u",),
            present=(True,),
            groups={"u": (0,)},
            num_frames=NUM_FRAMES,
            frame_interval=0.1,
            grid_shape=(8, 8),
            read=self._read,
            to_physical=lambda x: x,
            mean_frame=torch.zeros(1, 1, 1),
            size=(1.0,),
        )

    def _read(self, trajectory: int, frames: Sequence[int]) -> Tensor:
        self.read.append(trajectory)
        self.threads.add(threading.current_thread().name)
        self.begun[trajectory].set()
        return self.frames[trajectory, list(frames)]


def test_the_next_batch_is_read_while_one_is_forecast_and_none_beyond_it() -> None:
    watched = Watched()
    forecast = 0

    def predict(frames: Tensor, lead_time: Tensor) -> Tensor:
        nonlocal forecast
        batch = next(
            n
            for n in range(0, NUM_TRAJECTORIES, 2)
            if torch.equal(frames, watched.frames[n : n + 2, 0])
        )
        following = batch + 3  # the last trajectory of the next batch
        if following < NUM_TRAJECTORIES:
            assert watched.begun[following].wait(30)
        assert len(watched.read) <= batch + 4  # memory: two batches
        forecast += 1
        return frames

    evaluate_dataset(predict, watched.data, range(NUM_TRAJECTORIES), [1], batch_size=2)
    assert watched.read == list(range(NUM_TRAJECTORIES))
    assert len(watched.threads) == 1
    assert threading.current_thread().name not in watched.threads
    assert forecast == 3 * 3  # of each batch: autoregressive, direct, one step


def test_an_error_of_reading_is_raised_as_itself() -> None:
    watched = Watched()

    def broken(trajectory: int, frames: Sequence[int]) -> Tensor:
        if trajectory == 3:
            raise OSError("trajectory 3 cannot be read")
        return watched.frames[trajectory, list(frames)]

    object.__setattr__(watched.data, "read", broken)
    with pytest.raises(OSError, match="trajectory 3"):
        evaluate_dataset(lambda f, _: f, watched.data, range(6), [1], batch_size=2)


def test_parts_that_come_in_another_order_give_the_same_evaluation() -> None:
    def measurements() -> list[ForecastMeasurement]:
        return [
            ForecastMeasurement(
                lambda frames, lead_time: 0.9 * frames,
                Watched().data,
                range(5),
                [1, 2],
                batch_size=2,
                num_examples=3,
            )
            for _ in range(2)
        ]

    expected = measure_here(measurements())
    again = measurements()
    parts = {
        (number, batch): again[number].measure(batch, again[number].read(batch))
        for number, batch in reversed(units_of(again))
    }
    found = combined(again, parts.items())
    for a, b in zip(expected, found, strict=True):
        assert [e.trajectory for e in b.examples] == [0, 1, 2]
        assert a.scores.keys() == b.scores.keys()
        for method, by_metric in a.scores.items():
            for metric, values in by_metric.items():
                assert values.shape == (5, 2, 1)
                assert np.array_equal(values, b.scores[method][metric], equal_nan=True)
            if method in a.spectra:
                assert np.array_equal(a.spectra[method], b.spectra[method])


def test_frames_are_forecast_on_the_device_that_is_asked_for() -> None:
    devices: list[str] = []

    def predict(frames: Tensor, lead_time: Tensor) -> Tensor:
        devices.extend((frames.device.type, lead_time.device.type))
        raise StopIteration

    with pytest.raises(StopIteration):
        evaluate_dataset(predict, Watched().data, range(2), [1], device="meta")
    assert devices == ["meta", "meta"]
