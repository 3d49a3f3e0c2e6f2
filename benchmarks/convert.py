"""Converting HDF5: Pelagos against h5py and plain zarr-python, and against reading alone.

All ways convert the same file in the same run, one after the other in each repetition, from a hot
page cache, onto the same disk. The peers write the same frames with the same codec and the same
shards; one takes mean, standard deviation and extremes as well. CPU time and the ratio within one
repetition can be trusted on a shared machine; megabytes per second less so.

    python benchmarks/convert.py --trajectories 96 --repetitions 5
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from pelagos.data_pipelines.convert import ConvertOptions
from pelagos.jobs import convert

FIELDS = ("density", "Vx", "Vy", "pressure")
SHARD_BYTES = 128 * 2**20

Way = Callable[[Path, Path], None]  # source, destination


@dataclass(frozen=True)
class Timing:
    cpu_seconds: float
    seconds: float


def turbulent(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    """`[n, t, c, y, x]` with a spectrum of k^-5/3, advected and dispersed: as hard to compress as
    simulated flows are."""
    generator = np.random.default_rng(seed)
    size = shape[-1]
    k = np.fft.fftfreq(size) * size
    length = np.hypot(k[:, None], k)
    length[0, 0] = 1.0
    data = np.empty(shape, np.float32)
    for trajectory in data:
        spectra = np.fft.fft2(generator.normal(size=shape[2:])) * length ** (-4 / 3)
        for t, frame in enumerate(trajectory):
            turn = np.exp(-1j * t * (0.02 * k + 0.05 * length))
            frame[:] = np.fft.ifft2(spectra * turn).real
    return data


def write_sources(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """One array for all (Poseidon's layout), and one array per field with x first (PDEBench's)."""
    base = turbulent((min(24, options.trajectories), options.frames, 4, *[options.size] * 2))
    count = options.trajectories
    poseidon, pdebench = folder / "CE-RP.nc", folder / "2D_CFD.hdf5"
    with h5py.File(poseidon, "w") as one, h5py.File(pdebench, "w") as many:
        shape = (count, options.frames, 5, *base.shape[3:])
        data = one.create_dataset("data", shape, "f4")
        fields = [many.create_dataset(f, (*shape[:2], *shape[3:]), "f4") for f in FIELDS]
        for axis in "xy":
            many[f"{axis}-coordinate"] = (np.arange(options.size) + 0.5) / options.size
        for i in range(count):
            trajectory = base[i % len(base)]
            data[i, :, :4] = trajectory
            data[i, :, 4] = trajectory[:, 0]
            for channel, field in enumerate(fields):
                field[i] = trajectory[:, channel]
    return {"one array": poseidon, "array per field": pdebench}


def read_trajectories(source: Path) -> tuple[int, Callable[[int, int], npt.NDArray[np.float32]]]:
    """How many trajectories there are, and a function that reads some as `[n, t, c, y, x]`."""
    file = h5py.File(source, "r")
    if "data" in file:
        return len(file["data"]), lambda a, b: file["data"][a:b, :, :4]
    fields = [file[f] for f in FIELDS]
    return len(fields[0]), lambda a, b: np.stack([f[a:b].swapaxes(-1, -2) for f in fields], axis=2)


def only_read(source: Path, destination: Path) -> None:
    count, read = read_trajectories(source)
    for i in range(count):
        read(i, i + 1)


def pelagos(source: Path, destination: Path) -> None:
    convert.run(str(source), str(destination), ConvertOptions())


def zarr_python(source: Path, destination: Path, with_statistics: bool = False) -> None:
    """The same shards and codecs through zarr-python's public interface."""
    count, read = read_trajectories(source)
    first = read(0, 1)
    per_shard = max(1, min(count, round(SHARD_BYTES / first.nbytes)))
    array = zarr.create_array(
        destination,
        shape=(count, *first.shape[1:]),
        dtype="float32",
        chunks=(1, 1, *first.shape[2:]),
        shards=(per_shard, *first.shape[1:]),
        serializer=BytesCodec(),
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),
            Crc32cCodec(),
        ],
    )
    for start in range(0, count, per_shard):
        data = read(start, min(start + per_shard, count))
        array[start : start + len(data)] = data
        if with_statistics:
            for channel in range(data.shape[2]):
                values = data[:, :, channel]
                values.mean(dtype=np.float64), values.std(dtype=np.float64)
                values.min(), values.max()


def zarr_python_with_statistics(source: Path, destination: Path) -> None:
    zarr_python(source, destination, with_statistics=True)


WAYS: dict[str, Way] = {
    "h5py, reading alone": only_read,
    "h5py + zarr-python, sharded": zarr_python,
    "same, with statistics": zarr_python_with_statistics,
    "pelagos convert": pelagos,
}


def measure(way: Way, source: Path, destination: Path) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    way(source, destination)
    timing = Timing(time.process_time() - cpu, time.perf_counter() - wall)
    if way is pelagos:
        check(source, destination)
    shutil.rmtree(destination, ignore_errors=True)
    os.sync()  # what one way left to the disk is not the next one's to wait for
    return timing


def check(source: Path, destination: Path) -> None:
    """The last trajectory, by zarr-python, is the source's."""
    count, read = read_trajectories(source)
    data = zarr.open_group(destination, mode="r")["data"]
    assert isinstance(data, zarr.Array)
    assert np.array_equal(np.asarray(data[count - 1]), read(count - 1, count)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=96)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), Python "
        f"{platform.python_version()}, numpy {np.__version__}, h5py {h5py.__version__}, zarr "
        f"{zarr.__version__}"
    )
    num_bytes = options.trajectories * options.frames * 4 * options.size**2 * 4
    print(
        f"{options.trajectories} x {options.frames} x 4 x {options.size} x {options.size} "
        f"float32, {num_bytes / 1e6:.0f} MB; lz4 + crc32c; median of {options.repetitions}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layout, source in write_sources(folder, options).items():
            timings: dict[str, list[Timing]] = {way: [] for way in WAYS}
            for repetition in range(options.repetitions + 1):
                for way, function in WAYS.items():
                    timing = measure(function, source, folder / "out.zarr")
                    if repetition > 0:  # the first warms the page cache
                        timings[way].append(timing)
            print(f"\n{layout:32} {'MB/s':>6} {'best':>6} {'CPU s/GB':>9} {'pelagos / it':>13}")
            for way, rows in timings.items():
                print(f"{way:32} " + row(rows, timings["pelagos convert"], num_bytes))


def row(rows: list[Timing], ours: list[Timing], num_bytes: int) -> str:
    rates = [num_bytes / 1e6 / r.seconds for r in rows]
    cpu = statistics.median(r.cpu_seconds for r in rows) / num_bytes * 1e9
    ratios = sorted(r.seconds / our.seconds for r, our in zip(rows, ours, strict=True))
    return (
        f"{statistics.median(rates):6.0f} {max(rates):6.0f} {cpu:9.2f} "
        f"{statistics.median(ratios):13.2f}"
    )


if __name__ == "__main__":
    main()
