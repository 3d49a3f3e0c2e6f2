"""Reading windows from an object store: Pelagos by obstore and by s3fs, zarr-python, raw ranges.

The store is nginx on the loopback interface, so that the clients are what is measured. All read the same
random windows in the same repetition, one after the other, 16 at a time. Ratios within a
repetition and CPU time of the client can be trusted on a shared machine; windows per second less so.

    python benchmarks/remote_data.py --latency-ms 20
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import data as local
import google_crc32c
import numpy as np
import numpy.typing as npt
import obstore
import torch
import zarr
from loopback_origin import BUCKET, Origin, serve
from obstore.store import S3Store
from zarr.storage import FsspecStore, ObjectStore

from pelagos.data_pipelines.store import CacheSettings, Dataset, open_dataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
from fault_proxy import Fault, FaultProxy

BATCH = 16
RAW = "raw obstore ranges"
CHECKED = "raw, checksum and copy"  # what no reader that checks and fills a batch can spare
Read = Callable[[tuple[int, int], npt.NDArray[np.float32]], None]


@dataclass
class Row:
    """Measurements of one reader, one entry per repetition."""

    speed: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)
    requests: float = 0.0
    megabytes: float = 0.0


def options_of(endpoint: str, backend: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "anon": True, "pelagos": {"backend": backend}}


def make_readers(endpoint: str, length: int) -> tuple[dict[str, Read], Dataset]:
    """Readers of a window of `length` frames into a given array."""
    plain = f"s3://{BUCKET}/none.zarr"
    dataset = open_dataset(plain, options_of(endpoint, "obstore"))
    client = S3Store(
        BUCKET,
        prefix="none.zarr",
        endpoint=endpoint,
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
    )

    def raw(window: tuple[int, int], out: npt.NDArray[np.float32]) -> Any:
        shard, row = divmod(window[0], dataset.spec.shard_trajectories)
        (planned,) = dataset.plan(shard, row, range(window[1], window[1] + length))
        start, size = planned.byte_range
        key = dataset.manifest.shards[shard].key
        return obstore.get_range(client, key, start=start, length=size)

    def checked(window: tuple[int, int], out: npt.NDArray[np.float32]) -> None:
        found = np.frombuffer(raw(window, out), np.uint8).reshape(length, -1)
        for frame, target in zip(found, out.reshape(length, -1).view(np.uint8), strict=True):
            assert google_crc32c.value(frame[:-4]) == int.from_bytes(frame[-4:], "little")
            target[:] = frame[:-4]

    def of_pelagos(name: str, backend: str) -> Read:
        found = open_dataset(f"s3://{BUCKET}/{name}.zarr", options_of(endpoint, backend))
        for shard in range(found.spec.num_shards):
            found.shard_index(shard)

        def read(window: tuple[int, int], out: npt.NDArray[np.float32]) -> None:
            found.read_frames(window[0], range(window[1], window[1] + length), out)

        return read

    def of_zarr(store: Any) -> Read:
        array = zarr.open_group(store, mode="r")["data"]
        assert isinstance(array, zarr.Array)
        return lambda w, out: np.copyto(out, array[w[0], w[1] : w[1] + length])

    fsspec_options = {
        "endpoint_url": endpoint,
        "anon": True,
        "config_kwargs": {"max_pool_connections": 64},
    }
    for shard in range(dataset.spec.num_shards):
        dataset.shard_index(shard)
    readers: dict[str, Read] = {
        RAW: raw,
        CHECKED: checked,
        "pelagos obstore, none": of_pelagos("none", "obstore"),
        "pelagos obstore, lz4": of_pelagos("lz4", "obstore"),
        "pelagos s3fs, none": of_pelagos("none", "fsspec"),
        "zarr + obstore, none": of_zarr(ObjectStore(client, read_only=True)),
        "zarr + s3fs, none": of_zarr(
            FsspecStore.from_url(plain, storage_options=fsspec_options, read_only=True)
        ),
    }
    return readers, dataset


def random_windows(dataset: Dataset, count: int, length: int, seed: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(seed)
    trajectories = generator.integers(dataset.num_trajectories, size=count)
    starts = generator.integers(dataset.num_frames - length + 1, size=count)
    return [(int(t), int(s)) for t, s in zip(trajectories, starts, strict=True)]


def compare_readers(origin: Origin, endpoint: str, options: argparse.Namespace) -> None:
    """Every reader in turn, `options.threads` windows at once, into the arrays of a batch."""
    readers, dataset = make_readers(endpoint, options.length)
    rows = {name: Row() for name in readers}
    shape = (options.length, *dataset.spec.frame_shape)
    outs = [np.empty(shape, np.float32) for _ in range(BATCH)]
    with ThreadPoolExecutor(options.threads) as pool:
        for repetition in range(options.repetitions + 1):
            for name, read in readers.items():
                count = options.windows if "zarr" not in name else max(BATCH, options.windows // 4)
                count = BATCH * (count // BATCH)
                windows = random_windows(dataset, count, options.length, repetition)
                origin.forget()
                cpu, wall = time.process_time(), time.perf_counter()
                list(pool.map(read, windows, outs * (count // BATCH)))
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                if repetition == 0:  # connections are made, pages warmed
                    continue
                rows[name].speed.append(count / wall)
                rows[name].cpu_milliseconds.append(cpu / count * 1e3)
                requests, size = origin.counts()
                rows[name].requests = requests / count
                rows[name].megabytes = size / count / (4 * np.prod(shape))
    print(
        f"{'reader':24} {'windows/s':>10} {'CPU ms/window':>14} {'to raw':>7} "
        f"{'[min, max]':>14} {'requests':>9} {'bytes':>6}"
    )
    base = rows[RAW].speed
    for name, row in rows.items():
        ratios = [s / b for s, b in zip(row.speed, base, strict=True)]
        print(
            f"{name:24} {statistics.median(row.speed):10.0f} "
            f"{statistics.median(row.cpu_milliseconds):14.2f} {statistics.median(ratios):7.2f} "
            f"[{min(ratios):5.2f}, {max(ratios):5.2f}] {row.requests:9.2f} {row.megabytes:6.2f}"
        )


def mixture_of(dataset: Dataset, length: int) -> Mixture:
    return Mixture(
        [MixtureEntry(dataset)],
        dataset.field_names,
        lambda n: tuple(tuple(range(t, t + length)) for t in range(n - length + 1)),
    )


def loader_of(dataset: Dataset, options: argparse.Namespace, seed: int) -> StreamLoader:
    mixture = mixture_of(dataset, options.length)
    return StreamLoader(
        mixture,
        Sampler(mixture, seed),
        global_batch_size=BATCH,
        num_threads=options.threads,
        prefetch_steps=4,
    )


def loader_speed(dataset: Dataset, options: argparse.Namespace, num_steps: int) -> float:
    """Windows per second out of the loader, as torch batches."""
    with loader_of(dataset, options, 0) as loader:
        next(loader)
        started = time.perf_counter()
        for _ in range(num_steps):
            next(loader)
        return num_steps * BATCH / (time.perf_counter() - started)


def zarr_speed(read: Read, dataset: Dataset, options: argparse.Namespace, num_steps: int) -> float:
    """Windows per second as torch batches, by zarr in as many threads."""
    shape = (options.length, *dataset.spec.frame_shape)
    with ThreadPoolExecutor(options.threads) as pool:
        started = time.perf_counter()
        for step in range(num_steps):
            frames = np.empty((BATCH, *shape), np.float32)
            list(pool.map(read, random_windows(dataset, BATCH, options.length, step), frames))
            torch.from_numpy(frames)
        return num_steps * BATCH / (time.perf_counter() - started)


def compare_loaders(endpoint: str, options: argparse.Namespace) -> None:
    readers, dataset = make_readers(endpoint, options.length)
    steps = max(2, options.windows // BATCH)
    speeds, ratios = [], []
    for repetition in range(options.repetitions + 1):
        ours = loader_speed(dataset, options, steps)
        theirs = zarr_speed(readers["zarr + s3fs, none"], dataset, options, max(2, steps // 4))
        if repetition:
            speeds.append(ours)
            ratios.append(ours / theirs)
    print(
        f"torch batches end to end: {statistics.median(speeds):.0f} windows/s, "
        f"{statistics.median(ratios):.1f} times zarr + s3fs [{min(ratios):.1f}, {max(ratios):.1f}]"
    )


def epochs_with_cache(
    origin: Origin, endpoint: str, folder: Path, options: argparse.Namespace
) -> None:
    """Whole epochs in the sampler's order: the first fills the cache, the others read it."""
    uri = f"s3://{BUCKET}/{options.cached}.zarr"
    local_uri = str(folder / BUCKET / f"{options.cached}.zarr")
    settings = CacheSettings(str(folder / "cache"), 10**12)
    dataset = open_dataset(uri, options_of(endpoint, "obstore"), settings)
    mixture = mixture_of(dataset, options.length)
    steps = mixture.num_samples // BATCH
    origin.forget()
    with StreamLoader(
        mixture,
        Sampler(mixture, 0),
        global_batch_size=BATCH,
        num_threads=options.cache_threads,
        prefetch_steps=4,
    ) as loader:
        for epoch in range(4):
            cpu, started = time.process_time(), time.perf_counter()
            for _ in range(steps):
                next(loader)
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu
            requests, size = origin.counts()
            window = 4 * options.length * float(np.prod(dataset.spec.frame_shape))
            print(
                f"epoch {epoch}, {options.cached}, cache: {steps * BATCH / wall:8.0f} windows/s, "
                f"{cpu / steps / BATCH * 1e3:.3f} CPU ms/window, {requests / steps / BATCH:.3f} "
                f"requests and {size / steps / BATCH / window:.2f}x bytes per window"
            )
            origin.forget()
    out = np.empty((options.length, *dataset.spec.frame_shape), np.float32)
    windows = random_windows(dataset, 4 * options.windows, options.length, 0)
    for name, found in (("cached", dataset), ("local", open_dataset(local_uri))):
        cpu, started = time.process_time(), time.perf_counter()
        for trajectory, start in windows:
            found.read_frames(trajectory, range(start, start + options.length), out)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(
            f"reader alone, 1 thread, {name}: {len(windows) / wall:.0f} windows/s, "
            f"{cpu / len(windows) * 1e3:.3f} CPU ms/window"
        )


def stall_free(endpoint: str, options: argparse.Namespace) -> None:
    """A consumer that computes for twice as long as the storage needs: does it ever wait?"""
    dataset = open_dataset(f"s3://{BUCKET}/lz4.zarr", options_of(endpoint, "obstore"))
    capacity = loader_speed(dataset, options, 20)
    step = 2 * BATCH / capacity
    with loader_of(dataset, options, 1) as loader:
        next(loader)
        time.sleep(5 * step)
        waited, started = loader.data_wait_seconds, time.perf_counter()
        for _ in range(100):
            next(loader)
            time.sleep(step)
        waited = loader.data_wait_seconds - waited
        wall = time.perf_counter() - started
    print(f"consumer at half of the capacity: waits {100 * waited / wall:.2f} % of the time")


def faults(endpoint: str, options: argparse.Namespace) -> None:
    """Seconds until a window arrives after two 503, and after a stall in the middle."""
    proxy = FaultProxy(endpoint)
    try:
        for backend in ("obstore", "fsspec"):
            for hedge in (True, False) if backend == "obstore" else (False,):
                policy = {"backend": backend, "hedge": hedge}
                store = {**options_of(proxy.endpoint, backend), "pelagos": policy}
                dataset = open_dataset(f"s3://{BUCKET}/none.zarr", store)
                for kind, count in ((503, 2), ("stall_body", 1)):
                    times = []
                    for seed in range(5 if kind == 503 else 1):
                        ((trajectory, start),) = random_windows(dataset, 1, 2, seed)
                        dataset.shard_index(trajectory // dataset.spec.shard_trajectories)
                        proxy.faults.append(Fault(kind, count))
                        started = time.perf_counter()
                        dataset.window(trajectory, start, 2)
                        times.append(time.perf_counter() - started)
                    print(
                        f"{backend:8} hedge {'on ' if hedge else 'off'} {kind!s:10} x {count}: "
                        f"{statistics.median(times):.2f} s (longest {max(times):.2f})"
                    )
    finally:
        proxy.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=48)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--length", type=int, default=2, help="frames per window")
    parser.add_argument("--windows", type=int, default=320, help="windows per measurement")
    parser.add_argument("--threads", type=int, default=16, help="windows read at once")
    parser.add_argument("--cache-threads", type=int, default=8)
    parser.add_argument("--cached", choices=("none", "lz4"), default="none")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of the delayed origin")
    parser.add_argument(
        "--parts", nargs="+", default=["readers", "loaders", "latency", "cache", "stall", "faults"]
    )
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, obstore {obstore.__version__}, zarr {zarr.__version__}, "
        f"torch {torch.__version__}; origin: nginx on the loopback interface"
    )
    shape = (options.trajectories, options.frames, options.channels, options.size, options.size)
    array = local.make_data(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / BUCKET).mkdir()
        for compression in ("none", "lz4"):
            local.write(folder / BUCKET, array, compression)
        del array
        latency = options.latency_ms / 1e3
        with serve(folder, ["none.zarr", "lz4.zarr"], latency) as origin:
            run(origin, folder, options)


def run(origin: Origin, folder: Path, options: argparse.Namespace) -> None:
    if "readers" in options.parts:
        compare_readers(origin, origin.endpoint, options)
    if "loaders" in options.parts:
        compare_loaders(origin.endpoint, options)
    slow = origin.delayed_endpoint
    if slow is None:
        print("no delayed origin: nginx has no echo module, or --latency-ms is 0")
    elif "latency" in options.parts:
        print(f"with {options.latency_ms:g} ms per request:")
        compare_readers(origin, slow, options)
        compare_loaders(slow, options)
    if "cache" in options.parts:
        print(f"cache, {options.latency_ms if slow else 0:g} ms per request:")
        epochs_with_cache(origin, slow or origin.endpoint, folder, options)
    if "stall" in options.parts:
        stall_free(origin.endpoint, options)
    if "faults" in options.parts:
        faults(origin.endpoint, options)


if __name__ == "__main__":
    main()
