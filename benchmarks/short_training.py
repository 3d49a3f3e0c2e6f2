"""Small networks on the quickstart's data for a few hundred to a few thousand steps, in plain PyTorch.

    pelagos generate configs/quickstart/generate.yaml
    python benchmarks/short_training.py sinenet-nano --steps 3000 --lr 4e-3
    python benchmarks/short_training.py poseidon-nano '{"image_size": 32, "patch_size": 2}' --one-lead

One process, one thread, batches of 16 pairs of frames at random leads (`--one-lead`: of one frame),
relative L1 loss, AdamW, cosine schedule, gradients clipped at 5. Prints CPU seconds of the training,
its last loss, and, for the held-out trajectories of each family, median relative L1 error and VRMSE
at the longest lead: forecast directly, by a rollout of single frames, and by persistence.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pelagos.data_pipelines.store import open_dataset
from pelagos.models.registry import create_model

URIS = ("quickstart/data/ns-gauss.zarr", "quickstart/data/ns-sl.zarr")
BATCH, CLIP, WARMUP_SHARE, WEIGHT_DECAY = 16, 5.0, 0.05, 0.01


def read(uri: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return normalised trajectories `[trajectory, time, channel, y, x]`, of training and test.

    After them mean and deviation of each channel of the training split.
    """
    dataset = open_dataset(uri)
    frames = range(dataset.num_frames)
    parts = [
        torch.stack([torch.from_numpy(dataset.read_frames(i, frames)) for i in dataset.split(name)])
        for name in ("train", "test")
    ]
    mean, scale = (statistic[:, None, None] for statistic in _statistics(parts[0]))
    return (parts[0] - mean) / scale, (parts[1] - mean) / scale, mean, scale


def _statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    return frames.mean((0, 1, 3, 4)), frames.std((0, 1, 3, 4))


def forecast(model: nn.Module, frames: Tensor, lead: float) -> Tensor:
    prediction: Tensor = model(frames, torch.full((len(frames),), lead)).output
    return prediction


def train(
    model: nn.Module, data: Sequence[Tensor], steps: int, rate: float, one_lead: bool, seed: int
) -> tuple[float, float]:
    """Train; return the CPU seconds that it took, and the mean loss of the last hundred steps."""
    rng, last = np.random.default_rng(seed), data[0].shape[1] - 1
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=rate,
    )
    pairs = [(i, j) for i in range(last + 1) for j in range(i + 1, last + 1)]
    pairs = [(i, j) for i, j in pairs if not one_lead or j == i + 1]
    losses = []
    warmup, begun = max(1, int(WARMUP_SHARE * steps)), time.process_time()
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        share = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        drawn = []
        for _ in range(BATCH):
            frames = data[rng.integers(len(data))]
            trajectory, (i, j) = rng.integers(len(frames)), pairs[rng.integers(len(pairs))]
            drawn.append((frames[trajectory, i], frames[trajectory, j], (j - i) / last))
        inputs, targets = (torch.stack([d[k] for d in drawn]) for k in (0, 1))
        leads = torch.tensor([d[2] for d in drawn], dtype=torch.float32)
        loss = (model(inputs, leads).output - targets).abs().sum() / targets.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
    return time.process_time() - begun, float(np.mean(losses[-100:]))


def errors(forecasts: Tensor, truth: Tensor) -> str:
    """Return medians over trajectories of `[trajectory, channel, y, x]`: relative L1 and VRMSE."""
    wrong = forecasts - truth
    relative = wrong.abs().sum((1, 2, 3)) / truth.abs().sum((1, 2, 3))
    variance = truth.var((2, 3), unbiased=False).mean(1)
    vrmse = (wrong.pow(2).mean((1, 2, 3)) / variance).sqrt()
    return f"{relative.median():.1%} / {vrmse.median():.3f}"


@torch.no_grad()
def measured(model: nn.Module, frames: Tensor, mean: Tensor, scale: Tensor) -> str:
    start, last = frames[:, 0], frames.shape[1] - 1
    rolled = start
    for _ in range(last):
        rolled = forecast(model, rolled, 1 / last)
    found = {"direct": forecast(model, start, 1.0), "rollout": rolled, "persistence": start}
    truth = frames[:, -1] * scale + mean
    return ", ".join(f"{name} {errors(f * scale + mean, truth)}" for name, f in found.items())


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("network")
parser.add_argument("config", nargs="?", default="{}", type=json.loads)
parser.add_argument("--steps", type=int, default=800)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--one-lead", action="store_true")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(arguments.seed)
held = [read(uri) for uri in URIS]
channels = held[0][0].shape[2]
network = create_model(
    arguments.network, in_channels=channels, out_channels=channels, **arguments.config
)
seconds, last_loss = train(
    network,
    [training for training, *_ in held],
    arguments.steps,
    arguments.lr,
    arguments.one_lead,
    arguments.seed,
)
network.eval()
size = sum(p.numel() for p in network.parameters())
print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread")
print(
    f"{arguments.network} {arguments.config}: {size:,} parameters, {arguments.steps} steps, "
    f"{seconds:.0f} CPU s, training loss {last_loss:.3f}"
)
for uri, (_, *test) in zip(URIS, held, strict=True):
    print(f"  {uri}: {measured(network, *test)}")
