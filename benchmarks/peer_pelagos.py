"""Pelagos's own reader behind the protocol of its peers.

    python benchmarks/peer_pelagos.py pelagos prepare|windows|batches SETTING

is started by benchmarks/data_peers.py.
"""

from __future__ import annotations

from typing import Any

from loopback_origin import BUCKET
from peer_protocol import BATCH, Batches, FloatArray, Reader, Setting, Window, run_worker

from pelagos.data_pipelines.store import open_dataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler


class Pelagos(Reader):
    """A dataset's reader for single windows, the stream of batches for the rest.

    The stream normalises with mean 0 and standard deviation 1: the work is done, and no bit changes.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        uri: str = setting.copy
        options: dict[str, Any] = {}
        if setting.endpoint is not None:
            uri = f"s3://{BUCKET}/{setting.path}"
            options = {"endpoint_url": setting.endpoint, "anon": True}
        self.opened = open_dataset(uri, options)
        self.mixture = Mixture(
            [MixtureEntry(self.opened)],
            self.opened.field_names,
            lambda n: tuple(
                tuple(range(t, t + setting.length)) for t in range(n - setting.length + 1)
            ),
            normalization=Normalization.identity(self.opened.field_names),
        )

    def read(self, window: Window, out: FloatArray) -> None:
        trajectory, start = window
        self.opened.read_frames(trajectory, range(start, start + self.setting.length), out)

    def batches(self, seed: int) -> Batches:
        sampler = Sampler(self.mixture, seed)
        threads = self.setting.in_flight
        with StreamLoader(
            self.mixture, sampler, global_batch_size=BATCH, num_threads=threads, prefetch_steps=4
        ) as loader:
            for step, batch in enumerate(loader):
                samples = sampler.samples(step * BATCH, (step + 1) * BATCH)
                yield [(s.trajectory, s.window[0]) for s in samples], batch.frames.numpy()


if __name__ == "__main__":
    run_worker({"pelagos": Pelagos})
