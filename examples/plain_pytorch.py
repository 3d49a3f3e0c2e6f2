"""Your own PyTorch loop on a dataset: no job file, no cluster, only `pelagos.data_pipelines`.

    python examples/plain_pytorch.py quickstart/data/ns-gauss.zarr

Opens the dataset with xarray, draws a trajectory into `trajectory.png`, and trains a small network
on pairs of neighbouring frames. Batches come in an order that depends on the seed alone.
"""

import sys
from pathlib import Path

import torch
import xarray

from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.pictures.plots import contact_sheet
from pelagos.data_pipelines.store import open_dataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler

uri, num_steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100

# 1. Any tool reads it: this is plain Zarr.
print(xarray.open_zarr(uri)["data"].isel(trajectory=0, time=-1).mean(("y", "x")).values)

# 2. A picture: rows are fields, columns are times.
contact_sheet(open_dataset(uri), Path("trajectory.png"), trajectories=[0])

# 3. Ten lines to a stream of batches [batch, frame, channel, y, x], normalised, read ahead.
dataset = open_readable(uri)
pairs = lambda num_frames: tuple((t, t + 1) for t in range(num_frames - 1))  # noqa: E731
mixture = Mixture([MixtureEntry(dataset, "train")], dataset.field_names, pairs)
sampler = Sampler(mixture, seed=0)
model = torch.nn.Conv2d(len(mixture.fields), len(mixture.fields), 5, padding="same")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
with StreamLoader(mixture, sampler, global_batch_size=8, stop_step=num_steps) as loader:
    for step, batch in enumerate(loader, 1):
        now, later = batch.frames.unbind(dim=1)
        loss = (now + model(now) - later).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}")
