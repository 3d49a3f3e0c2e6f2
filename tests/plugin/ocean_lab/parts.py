"""What the laboratory registers: an objective, an optimizer, a schedule, a metric, a loss, a dataset."""

from dataclasses import dataclass

import numpy as np
import torch

from pelagos import plugins
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.readable import SpecReader
from pelagos.data_pipelines.store.schema import DatasetSpec, Field
from pelagos.models.losses import RelativeL2
from pelagos.models.objectives import NextStep
from pelagos.platform.optimization.optimizer_kinds import OptimizerKind


@dataclass(frozen=True)
class SmoothStep(NextStep):
    """The next frame, with a penalty on what is sharper than the truth."""

    sharpness: float = 0.1

    def errors(self, model, batch):
        return super().errors(model, batch) * (1.0 + self.sharpness)


class Momentum(torch.optim.Optimizer):
    """Gradient descent with momentum, value by value, decayed like AdamW's."""

    def __init__(self, groups, momentum=0.9):
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(parameter)
                state["velocity"].mul_(group["momentum"]).add_(parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * state["velocity"])


def build_momentum(groups, config):
    return Momentum(groups, **config.config)


def halving(progress, schedule):
    return 0.5 ** (4 * progress)


def mean_bias(forecast, truth, num_dimensions=2):
    axes = tuple(range(-num_dimensions - 1, 0))
    return (forecast.double() - truth.double()).mean(axes).abs()


class Waves(SpecReader):
    """`waves://NUM`: so many travelling waves sin(2π(x + y - t) + phase), computed when read."""

    fingerprint = "waves-1"

    def __init__(self, uri, storage_options, cache):
        count = uri.removeprefix("waves://")
        if not count.isdigit():
            raise DatasetError(f"{uri}: expected is waves://NUMBER, such as waves://20")
        number = int(count)
        spec = DatasetSpec(
            name="waves",
            equation="u_t + u_x = 0",
            fields=(Field("height", "height"),),
            num_trajectories=number,
            num_frames=5,
            grid_shape=(16, 16),
            frame_interval=0.1,
            domain_extent=(1.0, 1.0),
            boundary_conditions={"x": "periodic", "y": "periodic"},
            parameter_names=(),
            splits={
                "train": (0, number - 8),
                "validation": (number - 8, number - 4),
                "test": (number - 4, number),
            },
            trajectories_per_shard=number,
        )
        super().__init__(uri, spec)

    @property
    def statistics(self):
        return {"height": {"count": 1.0, "mean": 0.0, "std": 0.5**0.5, "min": -1.0, "max": 1.0}}

    @property
    def parameters(self):
        return {}

    def read_frames(self, trajectory, frames, out=None, region=None):
        self._check_bounds(trajectory, frames, region)
        out = self._checked_out(len(frames), out, region)
        y, x = np.meshgrid(np.arange(16) / 16, np.arange(16) / 16, indexing="ij")
        for index, frame in enumerate(frames):
            wave = np.sin(2 * np.pi * (x + y - 0.1 * frame) + trajectory)
            ranges = region or ((0, 16), (0, 16))
            out[index, 0] = wave[tuple(slice(*r) for r in ranges)]
        return out

    def close(self):
        pass


plugins.register_objective("smooth_step", SmoothStep)
plugins.register_optimizer(
    "momentum", OptimizerKind(build_momentum, moments=("velocity",), option_names=("momentum",))
)
plugins.register_schedule("halving", halving)
plugins.register_loss("lab_l2", RelativeL2())
plugins.register_metric("mean_bias", mean_bias)
plugins.register_opener("waves", Waves)
