"""Data and networks of the laboratory: a family of networks, a family of problems, a file format."""

from dataclasses import dataclass

import numpy as np
import torch
from ocean_lab.watch import WeightNorms
from torch import nn

from pelagos import plugins
from pelagos.data_pipelines.convert.formats import Format
from pelagos.data_pipelines.convert.npz import mapped_npy
from pelagos.data_pipelines.convert.source import Part, Source, StoredArray
from pelagos.data_pipelines.generate.family import Family as ProblemFamily
from pelagos.data_pipelines.generate.family import truncate
from pelagos.data_pipelines.store.schema import Field
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.pretrained import Pretrained


@dataclass(frozen=True)
class SwellConfig(Options):
    in_channels: int = 1
    out_channels: int = 1
    width: int = 4


class Swell(Pretrained):
    """The laboratory's network as a family of sizes."""

    model_types = ("swell",)
    config_class = SwellConfig

    def __init__(self, config: SwellConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):
            self.lift = nn.Conv2d(
                config.in_channels + 1, config.width, 5, padding=2, padding_mode="circular"
            )
            self.project = nn.Conv2d(config.width, config.out_channels, 1)
        self.materialize(device)

    def forward(self, frame, time):
        lead = time.reshape(-1, 1, 1, 1).expand(-1, 1, *frame.shape[2:])
        inner = torch.tanh(self.lift(torch.cat([frame, lead], dim=1)))
        return FrameOutput(frame + self.project(inner))

    def blocks(self) -> list[nn.Module]:
        return [self.lift]


def example(config, batch_size):
    return torch.zeros(batch_size, config.in_channels, 16, 16), torch.ones(batch_size)


def sines(generator, resolution):
    """`[1, y, x]`: a sine along x with a random phase."""
    x = np.arange(resolution) / resolution
    wave = np.sin(2 * np.pi * x + generator.uniform(0, 2 * np.pi))
    return np.broadcast_to(wave, (1, resolution, resolution)).copy()


def carried(states, times, _cfl):
    """Frames `[n, time, channel, y, x]` of u_t + u_x = 0 on the unit square, exact for sines."""
    spectrum = torch.fft.rfft(states, dim=-1)
    k = torch.arange(spectrum.shape[-1], dtype=states.dtype)
    turned = [spectrum * torch.exp(-2j * torch.pi * k * t) for t in times]
    frames = [torch.fft.irfft(one, n=states.shape[-1], dim=-1) for one in turned]
    return torch.stack(frames, dim=1)


def read_waves(path, options):
    shape = mapped_npy(path).shape
    array = StoredArray("npy", str(path), "", axes="ntyx", channel=0)
    return Source(
        format="lab-waves",
        name="recorded",
        equation="u_t + u_x = 0",
        fields=(Field("height", "height", "m"),),
        splits={"all": (Part((array,), count=shape[0]),)},
        num_frames=shape[1],
        grid_shape=shape[2:],
    )


plugins.register_model_family(
    Family(
        name="swell",
        model=Swell,
        paper="the laboratory's",
        inputs="one frame [batch, field, y, x] and a lead time",
        call="frame",
        example=example,
        sizes=(Size("small", 200, {"width": 4}),),
        default_channels=(1, 1),
    )
)
plugins.register_problem_family(
    ProblemFamily(
        name="lab-advection",
        description="sines that travel along x",
        equation="u_t + u_x = 0",
        fields=("height",),
        initial_state=sines,
        solve=carried,
        solve_compiled=carried,
        coarsen=truncate,
        cfl=0.5,
        grid_location="node",
        parameters=lambda _resolution: {},
    )
)
plugins.register_format(
    Format(
        "lab-waves",
        "waves of the laboratory",
        "a .npy file `[trajectory, time, y, x]` whose name ends in -waves.npy",
        lambda path, options: str(path).endswith("-waves.npy"),
        read_waves,
    )
)
plugins.register_callback("weight-norms", WeightNorms)
