"""The loader's output for the objective: one rank's share of one step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class Batch:
    """Samples of one step. `B` samples, `F` frames each, `C` model channels.

    Attributes:
        frames: `[B, F, C, y, x]` float32, normalised.
        times: `[B, F]` float32, physical time of each frame.
        present: `[B, C]` bool; False where the dataset lacks the channel, and frames are 0 there.
        dataset, trajectory: `[B]` int64, where each sample came from.
        sample_seed: `[B]` int64, non-negative, for whatever is drawn per sample.
        label: `[B]` int64, the trajectory's parameter `label`; -1 where the dataset has none.
    """

    frames: torch.Tensor
    times: torch.Tensor
    present: torch.Tensor
    dataset: torch.Tensor
    trajectory: torch.Tensor
    sample_seed: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
        }
        return Batch(**moved)

    def slice(self, start: int, stop: int) -> Batch:
        """Samples `start .. stop - 1`, as views."""
        return Batch(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})
