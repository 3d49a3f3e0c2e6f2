"""Stream a dataset into a plain PyTorch loop: no job file, no cluster, nothing but a loader.

    python examples/stream_in_ten_lines.py quickstart/data/ns-gauss.zarr
    python examples/stream_in_ten_lines.py s3://bucket/ns-gauss.zarr 1000

Batches come normalised, in an order that depends on the seed alone, read ahead by threads.
"""

import sys

import torch

from pelagos.data_pipelines.loader import StreamLoader
from pelagos.data_pipelines.mixture import Mixture, MixtureEntry
from pelagos.data_pipelines.sampler import Sampler
from pelagos.data_pipelines.store import open_dataset

uri, num_steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100

dataset = open_dataset(uri)
pairs = lambda num_frames: tuple((t, t + 1) for t in range(num_frames - 1))  # noqa: E731
mixture = Mixture([MixtureEntry(dataset, "train")], dataset.field_names, pairs)
sampler = Sampler(mixture, seed=0)
model = torch.nn.Conv2d(len(dataset.field_names), len(dataset.field_names), 5, padding="same")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
with StreamLoader(mixture, sampler, global_batch_size=8, stop_step=num_steps) as loader:
    for step, batch in enumerate(loader, 1):
        now, later = batch.frames.unbind(dim=1)  # each [batch, channel, y, x]
        loss = (now + model(now) - later).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}")
