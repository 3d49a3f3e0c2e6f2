"""The stream of batches: reads ahead in threads of this process and delivers in order.

No worker processes: a second copy and a pickle per batch cost more than reading, and fork breaks
every asynchronous storage client. Reading, checksums and decompression release the interpreter.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from pelagos.data_pipelines.streaming.batch import Batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import SampleIndex, Sampler

# Drawing 16 samples costs nearly as much as drawing 500: it is calls of numpy on short arrays.
SAMPLES_DRAWN_AT_ONCE = 512


def load_batch(mixture: Mixture, samples: list[SampleIndex]) -> Batch:
    """Read a batch, of grids of one shape, here and now, in this thread."""
    frames = np.empty((len(samples), *_shape_of(mixture, samples)), np.float32)
    for target, sample in zip(frames, samples, strict=True):
        mixture.read(sample.dataset, sample.trajectory, sample.window, target, sample.region)
    return _batch_around(mixture, samples, frames)


class StreamLoader(Iterator[Batch]):
    """Batches of one rank, from `start_step` on.

    Rank r of w gets slots `r * local .. (r + 1) * local - 1` of each global batch, where
    `local = global_batch_size / w`.

    Args:
        mixture, sampler: the data and their order.
        global_batch_size: samples per step over all ranks; a multiple of `world_size`.
        rank, world_size: this process among the group's.
        start_step: first step to deliver; a resumed run gives the number of steps done.
        num_threads: how many samples are read at once.
        prefetch_steps: how many steps may be read or waiting beyond the one being delivered.
        stop_step: end the iteration before this step; None never ends.

    Attributes:
        data_wait_seconds: how long the consumer has waited for data so far.

    Raises:
        ValueError: sizes do not divide or are out of range. While iterating, whatever a thread
            met, such as a DatasetError that names the dataset, the trajectory and the frames.
    """

    def __init__(
        self,
        mixture: Mixture,
        sampler: Sampler,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_threads: int = 4,
        prefetch_steps: int = 2,
        stop_step: int | None = None,
    ) -> None:
        if global_batch_size < 1 or global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size {global_batch_size} must be a multiple of world_size "
                f"{world_size}: {global_batch_size} = {world_size} * "
                f"{global_batch_size // world_size} + {global_batch_size % world_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be in 0..{world_size - 1}")
        if num_threads < 1 or prefetch_steps < 0 or start_step < 0:
            raise ValueError(
                f"num_threads {num_threads} must be at least 1; prefetch_steps {prefetch_steps} and "
                f"start_step {start_step} must not be negative"
            )
        counts_steps = len(mixture.distinct_shapes) > 1 or mixture.has_schedule
        if counts_steps and sampler.samples_per_step != global_batch_size:
            raise ValueError(
                "grids of several shapes, or weights by step: the sampler orders steps of "
                f"{sampler.samples_per_step} samples, but the loader has {global_batch_size}"
            )
        if sampler.mixture is not mixture:
            raise ValueError("the sampler orders another mixture: create it with this one")
        self.mixture = mixture
        self.sampler = sampler
        self.global_batch_size = global_batch_size
        self.local_batch_size = global_batch_size // world_size
        self.rank = rank
        self.prefetch_steps = prefetch_steps
        self.stop_step = stop_step
        self.data_wait_seconds = 0.0
        self._bytes_before = self._bytes_of_datasets()
        self._next_step = start_step  # the next step to begin reading
        self._drawn: deque[list[SampleIndex]] = deque()  # of the next steps to begin reading
        self._pending: deque[_PendingStep] = deque()
        self._failure: BaseException | None = None
        self._is_closed = False
        self._buffers = {
            shape: _BufferPool((self.local_batch_size, *shape))
            for shape in map(mixture.shape_on, mixture.distinct_shapes)
        }
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pelagos-loader")

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        self._read_ahead(self.prefetch_steps + 1)
        if not self._pending:
            raise StopIteration
        pending = self._pending.popleft()
        started = time.perf_counter()
        try:
            for future in pending.futures:
                future.result()
        except BaseException as error:
            self._failure = error
            self.close()
            raise
        finally:
            self.data_wait_seconds += time.perf_counter() - started
        self._read_ahead(self.prefetch_steps)
        return pending.batch

    def __iter__(self) -> Self:
        return self

    @property
    def bytes_read(self) -> int:
        """Stored bytes read from the mixture's datasets since this loader was made."""
        return self._bytes_of_datasets() - self._bytes_before

    @property
    def read_counts(self) -> dict[str, float]:
        """Requests to object stores so far, and reads from the node's cache, over all datasets.

        Counts of zero are left out (see `pelagos.infra.storage.read_policy.ReadCounters`).
        """
        datasets = {id(entry.dataset): entry.dataset for entry in self.mixture.entries}
        total: dict[str, float] = {}
        for dataset in datasets.values():
            for name, count in dataset.counters.snapshot().items():
                total[name] = total.get(name, 0.0) + count
        return {name: count for name, count in total.items() if count}

    def close(self) -> None:
        """Stop reading ahead and wait for the threads to end."""
        self._is_closed = True
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_ahead(self, num_steps: int) -> None:
        """Begin reading until `num_steps` steps are under way."""
        while len(self._pending) < num_steps and (
            self.stop_step is None or self._next_step < self.stop_step
        ):
            samples = self._draw()
            frames = self._buffers[_shape_of(self.mixture, samples)].take()
            batch = _batch_around(self.mixture, samples, frames)
            futures = [
                self._pool.submit(
                    self.mixture.read,
                    sample.dataset,
                    sample.trajectory,
                    sample.window,
                    target,
                    sample.region,
                )
                for sample, target in zip(samples, frames, strict=True)
            ]
            self._pending.append(_PendingStep(batch, futures))
            self._next_step += 1

    def _draw(self) -> list[SampleIndex]:
        """This rank's samples of the next step to read; several steps are drawn at once."""
        if not self._drawn:
            num_steps = max(1, SAMPLES_DRAWN_AT_ONCE // self.local_batch_size)
            if self.stop_step is not None:
                num_steps = min(num_steps, self.stop_step - self._next_step)
            steps = np.arange(self._next_step, self._next_step + num_steps, dtype=np.int64)
            firsts = steps * self.global_batch_size + self.rank * self.local_batch_size
            indices = firsts[:, None] + np.arange(self.local_batch_size)
            samples = iter(self.sampler.samples_at(indices.ravel()))
            self._drawn.extend(list(islice(samples, self.local_batch_size)) for _ in steps)
        return self._drawn.popleft()

    def _bytes_of_datasets(self) -> int:
        datasets = {id(entry.dataset): entry.dataset for entry in self.mixture.entries}
        return sum(dataset.bytes_read for dataset in datasets.values())


@dataclass(frozen=True)
class _PendingStep:
    """A batch whose frames are being read."""

    batch: Batch
    futures: list[Future[None]]


class _BufferPool:
    """Memory of batches, used again once nothing refers to it any more.

    A fresh allocation of a batch costs more in page faults than reading into it. A buffer is
    lent as a view; when the last tensor on the view is gone, the buffer comes back by itself, so a
    batch that is kept is never written to.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: list[npt.NDArray[np.float32]] = []

    def take(self) -> npt.NDArray[np.float32]:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(self._shape, np.float32)
        view = buffer[...]
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return view


def _shape_of(mixture: Mixture, samples: list[SampleIndex]) -> tuple[int, ...]:
    """The shape of one sample's frames, `[F, C, y, x]`; all of a step have one."""
    return mixture.shape_on(mixture.grid_shapes[samples[0].dataset])


def _batch_around(
    mixture: Mixture, samples: list[SampleIndex], frames: npt.NDArray[np.float32]
) -> Batch:
    """A batch on the memory of `frames`, `[B, F, C, y, x]`."""
    present = [mixture.present(sample.dataset) for sample in samples]
    times = [mixture.times(sample.dataset, sample.window) for sample in samples]
    return Batch(
        frames=torch.from_numpy(frames),
        times=torch.tensor(times, dtype=torch.float32),
        present=torch.from_numpy(np.stack(present)),
        dataset=torch.tensor([s.dataset for s in samples], dtype=torch.int64),
        trajectory=torch.tensor([s.trajectory for s in samples], dtype=torch.int64),
        sample_seed=torch.tensor([s.sample_seed for s in samples], dtype=torch.int64),
        label=torch.tensor([mixture.label(s.dataset, s.trajectory) for s in samples]),
    )
