"""A network as a laboratory has it: single-device PyTorch that knows nothing of Pelagos."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual convolution with periodic borders."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * F.gelu(self.convolution(x))


class WaveNet(nn.Module):
    """Lifts, convolves, projects; the lead time goes in as a channel."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        # numbers computed by torch in a constructor, which have no value on the meta device
        scales = torch.linspace(1.0, 0.5, depth).tolist()
        self.lift = nn.Conv2d(in_channels + 1, width, 1)
        self.blocks = nn.ModuleList(Block(width, scale) for scale in scales)
        self.project = nn.Conv2d(width, out_channels, 1)
        nn.init.zeros_(self.project.weight)
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1), 0.5))
        self.register_buffer("offset", torch.arange(out_channels) * 0.0, persistent=False)

    def forward(self, frame: Tensor, lead_time: Tensor) -> Tensor:
        lead = lead_time.reshape(-1, 1, 1, 1).expand(-1, 1, *frame.shape[2:])
        x = self.lift(torch.cat([frame, lead], dim=1))
        for block in self.blocks:
            x = block(x)
        return frame + self.gain * self.project(x) + self.offset.reshape(-1, 1, 1)
