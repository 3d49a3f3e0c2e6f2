"""Reading windows of frames: Pelagos against plain zarr-python and a copy from np.memmap.

All readers read the same random windows of the same data in the same run, one after the other in
each repetition, from a hot page cache. CPU time per window and the ratio within one repetition can
be trusted on a shared machine; windows per second less so.

    python benchmarks/data.py --trajectories 24 --repetitions 7
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import zarr

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler

Window = tuple[int, int]  # trajectory, first frame
Reader = Callable[[Window, npt.NDArray[np.float32]], None]


@dataclass(frozen=True)
class Timing:
    cpu_milliseconds: float
    windows_per_second: float


def make_data(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Smooth fields with a k^-5/3 energy spectrum, shifted from frame to frame."""
    generator = np.random.default_rng(0)
    *_, height, width = shape
    wavenumber = np.hypot(
        np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    )
    amplitude = np.where(wavenumber > 0, np.maximum(wavenumber, 1) ** (-8 / 6 - 0.5), 0)
    data = np.empty(shape, np.float32)
    for trajectory in range(shape[0]):
        noise = generator.normal(size=(shape[2], height, width))
        field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
        field /= field.std()
        for frame in range(shape[1]):
            data[trajectory, frame] = np.roll(field, frame, axis=-1)
    return data


def write(folder: Path, data: npt.NDArray[np.float32], compression: str) -> tuple[str, float]:
    """Write the data as a dataset; returns its path and the raw MB/s."""
    spec = DatasetSpec(
        name="benchmark",
        equation="none",
        fields=tuple(Field(f"f{i}", "tracer") for i in range(data.shape[2])),
        num_trajectories=data.shape[0],
        num_frames=data.shape[1],
        grid_shape=data.shape[3:],
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, data.shape[0])},
        compression=compression,  # type: ignore[arg-type]
    )
    started = time.perf_counter()
    writer = create_dataset(str(folder / f"{compression}.zarr"), spec)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop])
    writer.finalize()
    return writer.uri, data.nbytes / 1e6 / (time.perf_counter() - started)


def measure(read: Reader, windows: list[Window], out: npt.NDArray[np.float32]) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    for window in windows:
        read(window, out)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Timing(cpu / len(windows) * 1e3, len(windows) / wall)


def make_readers(
    folder: Path, data: npt.NDArray[np.float32], length: int, uris: dict[str, str]
) -> dict[str, Reader]:
    raw = folder / "raw.bin"
    data.tofile(raw)
    mapped = np.memmap(raw, np.float32, "r", shape=data.shape)
    readers: dict[str, Reader] = {
        "np.memmap copy": lambda w, out: np.copyto(out, mapped[w[0], w[1] : w[1] + length])
    }
    for name, uri in uris.items():
        dataset = open_dataset(uri)
        array = zarr.open_group(uri, mode="r")["data"]
        assert isinstance(array, zarr.Array)
        readers[f"pelagos {name}+crc32c"] = lambda w, out, d=dataset: d.read_frames(  # type: ignore[misc]
            w[0], range(w[1], w[1] + length), out
        )
        readers[f"zarr-python {name}+crc32c"] = (
            lambda w, out, a=array: np.copyto(  # type: ignore[misc]
                out, a[w[0], w[1] : w[1] + length]
            )
        )
    return readers


def benchmark_readers(readers: dict[str, Reader], options: argparse.Namespace) -> None:
    generator = np.random.default_rng(1)
    shape = (options.length, options.channels, options.size, options.size)
    out, reference = np.empty(shape, np.float32), np.empty(shape, np.float32)
    timings: dict[str, list[Timing]] = {name: [] for name in readers}
    for repetition in range(options.repetitions + 1):
        windows = [
            (int(t), int(f))
            for t, f in zip(
                generator.integers(options.trajectories, size=options.windows),
                generator.integers(options.frames - options.length + 1, size=options.windows),
                strict=True,
            )
        ]
        for name, read in readers.items():
            timing = measure(read, windows, out)
            readers["np.memmap copy"](windows[-1], reference)
            assert np.array_equal(out, reference), name
            if repetition > 0:  # the first warms the page cache
                timings[name].append(timing)
    print(f"{'reader':28} {'CPU ms/window':>14} {'windows/s':>10} {'ratio to memmap':>16}")
    base = timings["np.memmap copy"]
    for name, rows in timings.items():
        cpu = statistics.median(row.cpu_milliseconds for row in rows)
        speed = statistics.median(row.windows_per_second for row in rows)
        ratio = statistics.median(
            row.windows_per_second / b.windows_per_second for row, b in zip(rows, base, strict=True)
        )
        print(f"{name:28} {cpu:14.3f} {speed:10.0f} {ratio:16.3f}")


def benchmark_loader(uri: str, options: argparse.Namespace) -> None:
    """Windows per second out of the whole loader: sampling, reading, normalising, ordering."""
    dataset = open_dataset(uri)
    mixture = Mixture(
        [MixtureEntry(dataset)],
        dataset.field_names,
        lambda n: tuple(tuple(range(t, t + options.length)) for t in range(n - options.length + 1)),
    )
    num_steps = max(options.windows // 16, 4)
    for num_threads in options.threads:
        with StreamLoader(
            mixture, Sampler(mixture, 0), global_batch_size=16, num_threads=num_threads
        ) as loader:
            next(loader)
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(num_steps):
                next(loader)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        count = num_steps * 16
        print(
            f"loader, {num_threads:2} threads, batches of 16: {count / wall:8.0f} windows/s, "
            f"{cpu / count * 1e3:.3f} CPU ms/window"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=24)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--length", type=int, default=2, help="frames per window")
    parser.add_argument("--windows", type=int, default=200, help="windows per repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}, zarr {zarr.__version__}, torch {torch.__version__}"
    )
    shape = (options.trajectories, options.frames, options.channels, options.size, options.size)
    data = make_data(shape)
    print(f"data {shape} float32, {data.nbytes / 1e6:.0f} MB; windows of {options.length} frames")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uris = {}
        for compression in ("none", "lz4", "zstd"):
            uris[compression], speed = write(folder, data, compression)
            stored = sum(p.stat().st_size for p in Path(uris[compression]).rglob("0"))
            print(
                f"write {compression:4}: {speed:6.0f} MB/s with statistics, "
                f"{data.nbytes / stored:.2f}x smaller"
            )
        readers = make_readers(folder, data, options.length, uris)
        # In a thread, as the loader reads: in the main thread Blosc starts threads of its own.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(benchmark_readers, readers, options).result()
        benchmark_loader(uris["lz4"], options)


if __name__ == "__main__":
    main()
