"""Train a network of your own, defined here in 30 lines, and print its errors on held-out data.

    python examples/own_network.py

Simulates 80 trajectories of a decaying flow at 32 x 32, trains for 200 steps in this process (about a
minute on two cores), and evaluates. Everything goes to ./own-network.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn


class MyNet(nn.Module):
    """Residual convolutions with periodic borders; the lead time scales their answer."""

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 32, depth: int = 3
    ) -> None:
        super().__init__()
        self.lift = nn.Conv2d(in_channels, width, 1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 5, padding=2, padding_mode="circular") for _ in range(depth)
        )
        self.project = nn.Conv2d(width, out_channels, 1)

    def forward(self, frame: Tensor, lead_time: Tensor) -> Tensor:
        x = self.lift(frame)
        for block in self.blocks:
            x = x + torch.nn.functional.gelu(block(x))
        return frame + lead_time.reshape(-1, 1, 1, 1) * self.project(x)


DATA = """
job: generate
name: own-network-data
datasets:
  - {uri: data/flow.zarr, family: NS-Gauss, num_trajectories: 80, resolution: 32}
"""
TRAINING = """
job: pretrain
name: mine
data:
  mixture: [{uri: data/flow.zarr}]
  fields: [velocity-x, velocity-y]
  global_batch_size: 16
model: {name: "own_network:MyNet", config: {width: 32}}
objective: {name: all2all}
optimizer: {lr: 2e-3}
schedule: {total_steps: 200, warmup_steps: 10}
resources: {num_workers: 1, launcher: none, cpus_per_worker: 2}
"""


def main() -> None:
    """Simulate, train, evaluate: the verbs that any job uses."""
    place = Path("own-network")
    place.mkdir(exist_ok=True)
    (place / "own_network.py").write_text(Path(__file__).read_text())
    (place / "data.yaml").write_text(DATA)
    (place / "job.yaml").write_text(TRAINING)
    for arguments in (["generate", "data.yaml"], ["pretrain", "job.yaml"], ["evaluate", "mine"]):
        subprocess.run(
            [sys.executable, "-m", "pelagos.cli.main", *arguments], cwd=place, check=True
        )


if __name__ == "__main__":
    main()
