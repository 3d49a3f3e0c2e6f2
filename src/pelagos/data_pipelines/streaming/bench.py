"""The measured throughput of a dataset's storage on this machine, and the settings it implies.

`bench` reads random windows for a while at several concurrencies: first their bytes alone, then
through the reader (checksums, decoding), then whole batches next to a consumer that sleeps for the step
time. It writes nothing and uses no cache, so that the numbers are the storage's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pelagos.data_pipelines.foreign import Description, ForeignDataset, open_readable
from pelagos.data_pipelines.foreign.identity import object_sizes
from pelagos.data_pipelines.foreign.opening import require_stored
from pelagos.data_pipelines.store import Dataset, DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler

CONCURRENCIES = (1, 4, 16, 32)
HEADROOM = 1.3  # storage is not always as fast as in one second of measuring
SIMULATED_STEPS = 20
MOST_SIMULATED_SECONDS = 10.0
MOST_PREFETCH_STEPS = 8
_FOREIGN_SAMPLES = 8  # windows whose bytes are averaged


@dataclass(frozen=True)
class Reading:
    """Random windows read by some threads for a while.

    Attributes:
        megabytes_per_second: of stored bytes.
        median_seconds, p99_seconds: latency of one window.
        cpu_milliseconds: processor time of this process per window.
        requests_per_window: requests to the store; 0 for local files and arrays
            of other writers, which are not counted.
    """

    num_threads: int
    windows_per_second: float
    megabytes_per_second: float
    median_seconds: float
    p99_seconds: float
    cpu_milliseconds: float
    requests_per_window: float


@dataclass(frozen=True)
class Recommendation:
    """Settings for `data` in a job, and how a simulated consumer fared with them.

    Attributes:
        is_enough: whether the storage meets the step's needs, with some headroom.
        cache_bytes: a budget that holds the whole dataset, or None where none is needed.
        stall_fraction: measured share of the time that a consumer sleeping for the step time
            waited for data, after the first step.
    """

    needed_windows_per_second: float
    is_enough: bool
    num_threads: int
    prefetch_steps: int
    cache_bytes: int | None
    stall_fraction: float


@dataclass(frozen=True)
class BenchReport:
    """How fast a dataset was read, and the settings that follow."""

    uri: str
    store: str
    window_bytes: int
    trajectory_bytes: int
    dataset_bytes: int
    open_seconds: float
    raw: tuple[Reading, ...]
    reader: tuple[Reading, ...]
    recommendation: Recommendation

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    uri: str,
    storage_options: dict[str, Any] | None = None,
    *,
    step_seconds: float,
    batch_size: int,
    num_frames: int = 2,
    seconds: float = 1.0,
    description: Description | None = None,
    concurrencies: Sequence[int] = CONCURRENCIES,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure how a dataset can be read from here.

    Args:
        step_seconds: how long a training step computes.
        batch_size: samples per step of one process.
        num_frames: frames of a sample.
        seconds: for each measurement.
        description: properties that another writer's array lacks. Of such arrays the bytes
            alone are not measured, and no cache is recommended, since they have none.
        progress: called with the next measurement.

    Raises:
        DatasetError: the dataset cannot be opened or read, or its trajectories are shorter.
        ValueError: an argument is not positive.
    """
    for name, value in (
        ("step_seconds", step_seconds),
        ("batch_size", batch_size),
        ("num_frames", num_frames),
        ("seconds", seconds),
    ):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    require_stored(uri)
    progress("opening")
    started = time.perf_counter()
    dataset = open_readable(uri, storage_options, description)
    open_seconds = time.perf_counter() - started
    if num_frames > dataset.num_frames:
        raise DatasetError(
            f"dataset {uri} has {dataset.num_frames} frames per trajectory, windows of {num_frames} "
            f"are asked for"
        )
    windows: _Windows | _ForeignWindows
    if isinstance(dataset, ForeignDataset):
        windows = _ForeignWindows(dataset, num_frames)
        store = "zarr"
        dataset_bytes = sum(object_sizes(uri, storage_options, dataset.arrays))
    else:
        assert isinstance(dataset, Dataset)
        windows = _Windows(dataset, num_frames)
        store = type(dataset.store).__name__
        dataset_bytes = sum(shard.size for shard in dataset.manifest.shards)
    raw, reader = [], []
    for num_threads in concurrencies:
        if isinstance(windows, _Windows):
            progress(f"bytes alone, {num_threads} at once")
            raw.append(_measure(dataset, windows.read_bytes, num_threads, seconds))
        progress(f"reader, {num_threads} threads")
        reader.append(_measure(dataset, windows.read_frames, num_threads, seconds))
    progress("beside a consumer")
    return BenchReport(
        uri=uri,
        store=store,
        window_bytes=windows.mean_bytes(),
        trajectory_bytes=dataset_bytes // dataset.num_trajectories,
        dataset_bytes=dataset_bytes,
        open_seconds=open_seconds,
        raw=tuple(raw),
        reader=tuple(reader),
        recommendation=_recommend(
            dataset, reader, step_seconds, batch_size, num_frames, dataset_bytes
        ),
    )


class _ForeignWindows:
    """Random windows of an array of another writer. Methods may be called from threads.

    Which bytes a window needs is zarr's affair: they are counted as it fetches them, on average.
    """

    def __init__(self, dataset: ForeignDataset, num_frames: int) -> None:
        self.dataset = dataset
        self.num_frames = num_frames
        self._mean_bytes = 0
        before, generator = dataset.bytes_read, np.random.default_rng(0)
        for _ in range(_FOREIGN_SAMPLES):
            self.read_frames(generator)
        self._mean_bytes = (dataset.bytes_read - before) // _FOREIGN_SAMPLES

    def read_frames(self, generator: np.random.Generator) -> int:
        trajectory = int(generator.integers(self.dataset.num_trajectories))
        start = int(generator.integers(self.dataset.num_frames - self.num_frames + 1))
        self.dataset.read_frames(trajectory, range(start, start + self.num_frames))
        return self._mean_bytes

    def mean_bytes(self) -> int:
        return self._mean_bytes


class _Windows:
    """Random windows of a dataset. Methods may be called from threads."""

    def __init__(self, dataset: Dataset, num_frames: int) -> None:
        self.dataset = dataset
        self.num_frames = num_frames
        self._parts = range(dataset.spec.chunks_per_frame)
        self._last_start = dataset.num_frames - num_frames
        for shard in range(dataset.spec.num_shards):
            dataset.shard_index(shard)  # read once, then kept: no part of a window's cost

    def read_bytes(self, generator: np.random.Generator) -> int:
        shard, row, frames = self._draw(generator)
        plan = self.dataset.plan(shard, row, frames, self._parts)
        ranges = [planned.byte_range for planned in plan]
        self.dataset.store.read_ranges(self.dataset.manifest.shards[shard].key, ranges)
        return sum(length for _, length in ranges)

    def read_frames(self, generator: np.random.Generator) -> int:
        shard, row, frames = self._draw(generator)
        before = self.dataset.plan(shard, row, frames, self._parts)
        trajectory = shard * self.dataset.spec.shard_trajectories + row
        self.dataset.read_frames(trajectory, frames)
        return sum(planned.byte_range[1] for planned in before)

    def mean_bytes(self) -> int:
        generator = np.random.default_rng(0)
        sizes = []
        for _ in range(64):
            plan = self.dataset.plan(*self._draw(generator), self._parts)
            sizes.append(sum(planned.byte_range[1] for planned in plan))
        return int(np.mean(sizes))

    def _draw(self, generator: np.random.Generator) -> tuple[int, int, range]:
        trajectory = int(generator.integers(self.dataset.num_trajectories))
        start = int(generator.integers(self._last_start + 1))
        shard, row = divmod(trajectory, self.dataset.spec.shard_trajectories)
        return shard, row, range(start, start + self.num_frames)


def _measure(
    dataset: ReadableDataset,
    read: Callable[[np.random.Generator], int],
    num_threads: int,
    seconds: float,
) -> Reading:
    """Read in `num_threads` threads, each until the time is over."""
    requests = dataset.counters.requests
    cpu, started = time.process_time(), time.perf_counter()

    def run(seed: int) -> tuple[list[float], int]:
        generator = np.random.default_rng(seed)
        latencies: list[float] = []
        num_bytes = 0
        while not latencies or time.perf_counter() - started < seconds:
            begin = time.perf_counter()
            num_bytes += read(generator)
            latencies.append(time.perf_counter() - begin)
        return latencies, num_bytes

    with ThreadPoolExecutor(num_threads) as pool:
        rows = list(pool.map(run, range(num_threads)))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    latencies = np.concatenate([row[0] for row in rows])
    return Reading(
        num_threads=num_threads,
        windows_per_second=len(latencies) / wall,
        megabytes_per_second=sum(row[1] for row in rows) / 1e6 / wall,
        median_seconds=float(np.median(latencies)),
        p99_seconds=float(np.quantile(latencies, 0.99)),
        cpu_milliseconds=cpu / len(latencies) * 1e3,
        requests_per_window=(dataset.counters.requests - requests) / len(latencies),
    )


def _recommend(
    dataset: ReadableDataset,
    readings: Sequence[Reading],
    step_seconds: float,
    batch_size: int,
    num_frames: int,
    dataset_bytes: int,
) -> Recommendation:
    """The fewest threads that meet a step's needs, or the best number, found by trying."""
    needed = batch_size / step_seconds
    enough = [r for r in readings if r.windows_per_second >= HEADROOM * needed]
    chosen = enough[0] if enough else max(readings, key=lambda r: r.windows_per_second)
    # Ahead by as many steps as a batch takes whose windows are all late.
    rounds = math.ceil(batch_size / chosen.num_threads)
    ahead = math.ceil(rounds * chosen.p99_seconds / step_seconds) + 1
    prefetch = min(max(ahead, 2), MOST_PREFETCH_STEPS)
    can_be_cached = isinstance(dataset, Dataset)  # arrays of other writers are not
    return Recommendation(
        needed_windows_per_second=needed,
        is_enough=bool(enough),
        num_threads=chosen.num_threads,
        prefetch_steps=prefetch,
        cache_bytes=None if enough or not can_be_cached else math.ceil(1.01 * dataset_bytes),
        stall_fraction=_stall(
            dataset, chosen.num_threads, prefetch, step_seconds, batch_size, num_frames
        ),
    )


def _stall(
    dataset: ReadableDataset,
    num_threads: int,
    prefetch_steps: int,
    step_seconds: float,
    batch_size: int,
    num_frames: int,
) -> float:
    """Share of the time that a consumer of batches waits for data, after its first step."""
    mixture = Mixture(
        [MixtureEntry(dataset, "all")],
        dataset.field_names,
        lambda n: tuple(tuple(range(t, t + num_frames)) for t in range(n - num_frames + 1)),
        # the cost of reading does not depend on it, and foreign arrays would be read whole for it
        Normalization.identity(dataset.field_names),
    )
    num_steps = max(3, min(SIMULATED_STEPS, int(MOST_SIMULATED_SECONDS / step_seconds)))
    with StreamLoader(
        mixture,
        Sampler(mixture, 0),
        global_batch_size=batch_size,
        num_threads=num_threads,
        prefetch_steps=prefetch_steps,
    ) as loader:
        next(loader)
        time.sleep(step_seconds)
        started, waited = time.perf_counter(), loader.data_wait_seconds
        for _ in range(num_steps):
            next(loader)
            time.sleep(step_seconds)
        wall = time.perf_counter() - started
        return (loader.data_wait_seconds - waited) / wall
