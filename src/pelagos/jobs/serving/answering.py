"""From a question to an answer by the forecaster.

`Forecaster` checks, normalises and answers each question alone, so its errors and doubts are about that
question and no other. Only the network sees several together: `predict_normalized` is replaced.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.jobs.serving.limits import Limits, Refused
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.trained_on import collected_warnings

Part = tuple[Tensor, Tensor]  # normalised frames `[batch, …]` and lead times `[batch]`
Through = Callable[[Tensor, Tensor], Tensor]
UNPROCESSABLE = 422


@dataclass(frozen=True)
class Question:
    """A forecast that somebody asks for; arguments as of `Forecaster.predict`.

    Attributes:
        steps: of a rollout; None: of `predict`.
    """

    fields: npt.NDArray[Any]
    lead_time: float | tuple[float, ...] | None = None
    absent: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Answer:
    """A forecast, or why there is none.

    Attributes:
        forecast: as `Forecaster.predict` or `rollout` returns it; None if the question was refused.
        lead_times: of the forecasts, in the unit of time of the training.
        warnings: doubts about the question.
        status, problem: of HTTP, and the text, of a refusal.
        passes: samples of each pass through the network since the last answer, of this or others.
    """

    forecast: npt.NDArray[Any] | None = None
    lead_times: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    status: int = 200
    problem: str = ""
    passes: tuple[int, ...] = ()


class ServedForecaster(Forecaster):
    """A forecaster whose network others may be asked for.

    Attributes:
        through: takes normalised frames and leads through the network; None: this forecaster does.
        most: samples of one pass.
    """

    through: Through | None = None
    most: int = 16

    def predict_normalized(self, frames: Tensor, lead_time: Tensor) -> Tensor:
        through = self.through or self.network
        parts = [slice(n, n + self.most) for n in range(0, len(frames), self.most)]
        return torch.cat([through(frames[part], lead_time[part]) for part in parts])

    def network(self, frames: Tensor, lead_time: Tensor) -> Tensor:
        """Return the network's own answer."""
        return super().predict_normalized(frames, lead_time)


class Answerer:
    """Answers questions about one model; threads may ask at the same time.

    Attributes:
        forecaster: the model.
    """

    def __init__(
        self, directory: Path, limits: Limits, batch_size: int = 16, device: str = "cpu"
    ) -> None:
        """Load the model of a directory, as `Forecaster.load`; `batch_size`: samples of one pass."""
        loaded = ServedForecaster.load(directory)
        assert isinstance(loaded, ServedForecaster)
        self.forecaster = loaded.to(torch.device(device))
        self.forecaster.most = batch_size
        self.forecaster.through = lambda *part: self.pass_through([part])[0]
        self._limits = limits
        self._passes: list[int] = []

    def answer(self, question: Question) -> Answer:
        """Return the forecast, or the refusal in the forecaster's own words."""
        with collected_warnings() as warnings:
            try:
                self._check_size(question)
                leads = self._leads(question)
                forecast = self._forecast(question)
            except Refused as error:
                return Answer(status=error.status, problem=str(error), passes=self._reported())
            except ValueError as error:
                return Answer(status=UNPROCESSABLE, problem=str(error), passes=self._reported())
        told = tuple(dict.fromkeys(warnings))
        return Answer(forecast, leads, told, passes=self._reported())

    def pass_through(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return the network's answer to each part: one pass for all parts of the same grid.

        Lead times may differ, as the network takes one for each sample.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (frames, _) in enumerate(parts):
            groups.setdefault(tuple(frames.shape[1:]), []).append(number)
        answers: dict[int, Tensor] = {}
        for numbers in groups.values():
            together = [torch.cat([parts[n][i] for n in numbers]) for i in (0, 1)]
            sizes = [len(parts[n][0]) for n in numbers]
            self._passes.append(sum(sizes))
            forecasts = self.forecaster.network(together[0], together[1])
            answers.update(zip(numbers, torch.split(forecasts, sizes), strict=True))
        return [answers[n] for n in range(len(parts))]

    def facts(self) -> dict[str, Any]:
        """Return what a client needs to know of the model."""
        trained = self.forecaster.trained_on
        return {
            "fields": list(self.forecaster.fields),
            "units": dict(trained.units),
            "grids": [list(grid) for grid in trained.grids],
            "lead_times": list(trained.lead_times),
            "time_unit": trained.time_unit,
            "input_frames": self.forecaster.input_frames,
            "weights": self.forecaster.weights,
        }

    def example(self) -> Question:
        """Return a question that the model can answer: the means of its fields, on a grid it knows."""
        mean = np.asarray(self.forecaster.normalization.mean, np.float32)
        grids = self.forecaster.trained_on.grids
        if not grids:
            raise ValueError(
                "the model does not say on which grid it was trained, as an earlier version made it: "
                "export it again from its run"
            )
        grid = grids[0]
        frames = (self.forecaster.input_frames,) if self.forecaster.channel_axis == 2 else ()
        values = mean.reshape(-1, *(1,) * len(grid))
        return Question(np.broadcast_to(values, (1, *frames, len(mean), *grid)).copy())

    def _forecast(self, question: Question) -> npt.NDArray[Any]:
        given = question.fields
        fields = given if given.flags.writeable else given.copy()  # from Ray's shared memory
        asked = (fields, question.lead_time, question.absent)
        if question.steps is None:
            return self.forecaster.predict(*asked, names=question.names)
        fields, lead, absent = asked
        if isinstance(lead, tuple):
            raise ValueError(f"rollout takes one lead_time, of each step; got {len(lead)}")
        return self.forecaster.rollout(fields, question.steps, lead, absent, names=question.names)

    def _leads(self, question: Question) -> tuple[float, ...]:
        if question.steps is not None and not isinstance(question.lead_time, tuple):
            step = self.forecaster.lead_of_step(question.lead_time)
            return tuple(step * (n + 1) for n in range(question.steps))
        given = question.lead_time
        return given if isinstance(given, tuple) else (self.forecaster.lead_of_step(given),)

    def _check_size(self, question: Question) -> None:
        """Raise Refused if the question is too large. Of wrong shapes the forecaster speaks itself."""
        shape, axis = question.fields.shape, self.forecaster.channel_axis
        dimensions = self.forecaster.trained_on.num_dimensions or max(0, len(shape) - axis - 1)
        grid = shape[len(shape) - dimensions :]
        samples = shape[0] if len(shape) == axis + 1 + dimensions else 1
        lead = question.lead_time
        leads = question.steps or (len(lead) if isinstance(lead, tuple) else 1)
        total = samples * leads if question.steps else max(samples, leads)
        channels = len(self.forecaster.fields)
        self._limits.check_size(samples, channels, math.prod(grid), leads, total)

    def _reported(self) -> tuple[int, ...]:
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._passes.pop(0))
        return tuple(found)
