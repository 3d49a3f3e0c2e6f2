"""What a benchmark's worker process answers, whichever library reads in it.

A worker gets commands on its standard input, one a line, and answers each with a line of JSON:

    read SEED COUNT     read so many windows; seconds, CPU seconds, and a sum of sampled values of
                        each window
    verify SEED COUNT   the same with a checksum of all bytes of each window, not meant to be timed

Windows are drawn from the seed, or come in the order of the library where it has one of its own; the
answer names them, so that the parent can hold every one against the raw data. Only NumPy is needed.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH = 16
SAMPLED = (..., slice(None, None, 16), slice(None, None, 16))  # of the grid, for the cheap sums
Window = tuple[int, int]  # trajectory, first frame
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """What a worker reads.

    Attributes:
        raw: the data that copies are made of, `.npy`, `[trajectory, frame, channel, y, x]` float32.
        copy: folder of this reader's own copy.
        shape: of the raw data.
        length: frames per window.
        in_flight: windows, or threads, at once when batches are read.
        endpoint: of the object store that serves `copy`; None reads files.
        path: of the copy within that store's bucket.
        workers: processes of torch's DataLoader, where a library needs it.
    """

    raw: str
    copy: str
    shape: tuple[int, ...]
    length: int
    in_flight: int = 16
    endpoint: str | None = None
    path: str = ""
    workers: int = 2

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        values = json.loads(text)
        return cls(**{**values, "shape": tuple(values["shape"])})

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def windows_per_trajectory(self) -> int:
        return self.shape[1] - self.length + 1

    def window(self, number: int) -> Window:
        """Windows are numbered by trajectory, then by first frame."""
        trajectory, start = divmod(number, self.windows_per_trajectory)
        return trajectory, start

    def draw(self, seed: int) -> Iterator[Window]:
        """Random windows without end."""
        generator = np.random.default_rng(seed)
        while True:
            for number in generator.integers(self.shape[0] * self.windows_per_trajectory, size=256):
                yield self.window(int(number))


Batches = Iterator[tuple[list[Window], FloatArray]]


class Reader:
    """One library. Subclasses implement `read`, or `batches`, or both."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        """Write this library's copy of the raw data; nothing if it reads one that exists."""

    def buffer(self) -> FloatArray:
        """What a window is read into."""
        return np.empty((self.setting.length, *self.setting.frame_shape), np.float32)

    def read(self, window: Window, out: FloatArray) -> None:
        """Read one window from local files."""
        raise NotImplementedError

    def standard(self, frames: FloatArray) -> FloatArray:
        """A view `[…, frame, channel, y, x]` of frames that have the library's own order."""
        return frames

    def batches(self, seed: int) -> Batches:
        """Torch batches `[BATCH, frame, …]`, given here by their memory, with their windows."""
        with ThreadPoolExecutor(self.setting.in_flight) as pool:
            yield from in_flight(
                self.setting, seed, lambda window, out: pool.submit(self.read, window, out)
            )


def in_flight(setting: Setting, seed: int, submit: Callable[[Window, FloatArray], Any]) -> Batches:
    """Batches in the order of drawing, of which `setting.in_flight` windows are being read at any time.

    Args:
        submit: begins to read a window into an array; what it returns has `.result()`.
    """
    import torch

    shape = (BATCH, setting.length, *setting.frame_shape)
    windows = setting.draw(seed)
    pending: deque[tuple[list[Window], FloatArray, deque[Any]]] = deque()

    def fill() -> None:
        while sum(len(futures) for _, _, futures in pending) < setting.in_flight:
            if not pending or len(pending[-1][0]) == BATCH:
                pending.append(([], np.empty(shape, np.float32), deque()))
            chosen, frames, futures = pending[-1]
            chosen.append(next(windows))
            futures.append(submit(chosen[-1], frames[len(chosen) - 1]))

    try:
        while True:
            fill()
            chosen, frames, futures = pending[0]
            while futures:
                futures.popleft().result()
                fill()
            pending.popleft()
            yield chosen, torch.from_numpy(frames).numpy()
    finally:
        for _, _, futures in pending:
            for future in futures:
                future.result()


def sampled_sums(frames: FloatArray) -> list[int]:
    """Of frames `[window, frame, channel, y, x]`: the bits at every sixteenth point, added up."""
    bits = frames.view(np.uint32)[SAMPLED]
    return [int(value) for value in bits.sum(axis=(1, 2, 3, 4), dtype=np.uint64)]


def checksums(frames: FloatArray) -> list[int]:
    """CRC-32 of each window's bytes."""
    return [zlib.crc32(np.ascontiguousarray(window).data) for window in frames]


def read_windows(reader: Reader, seed: int, count: int, *, verify: bool) -> dict[str, Any]:
    """One window after the other from local files; one in sixteen is held against the raw data."""
    windows = list(itertools.islice(reader.setting.draw(seed), count))
    out = reader.buffer()
    seen: list[tuple[int, int, int]] = []
    summary = checksums if verify else sampled_sums
    cpu, wall = time.process_time(), time.perf_counter()
    for number, window in enumerate(windows):
        reader.read(window, out)
        if verify or number % BATCH == BATCH - 1:
            seen.append((*window, *summary(reader.standard(out)[None])))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"seconds": wall, "cpu_seconds": cpu, "windows": count, "seen": seen}


def read_batches(reader: Reader, seed: int, count: int, *, verify: bool) -> dict[str, Any]:
    """Torch batches, timed from the start of the iteration, and until the first of them came.

    Without the first, libraries that fetch much before it would have the rest for nothing.
    """
    summary = checksums if verify else sampled_sums
    seen: list[tuple[int, int, int]] = []
    cpu, wall, first = time.process_time(), time.perf_counter(), 0.0
    stream = reader.batches(seed)
    try:
        for windows, frames in stream:
            first = first or time.perf_counter() - wall
            values = summary(reader.standard(frames))
            seen += [(*w, v) for w, v in zip(windows, values, strict=True)]
            if len(seen) >= count:
                break
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        stream.close()  # type: ignore[attr-defined]
    return {
        "seconds": wall,
        "first_seconds": first,
        "cpu_seconds": cpu,
        "windows": len(seen),
        "seen": seen,
    }


def run_worker(readers: dict[str, type[Reader]]) -> None:
    """`NAME prepare|windows|batches SETTING`: write the copy, or answer commands until input ends."""
    name, task, text = sys.argv[1:]
    setting = Setting.from_json(text)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    if task == "prepare":
        Path(setting.copy).mkdir(parents=True, exist_ok=True)
        readers[name].prepare(setting)
        return
    reader = readers[name](setting)
    answer = read_windows if task == "windows" else read_batches
    print(json.dumps({"ready": True}), file=answers)
    # In a thread, as loaders read: in the main thread Blosc starts threads of its own.
    with ThreadPoolExecutor(1) as pool:
        for line in sys.stdin:
            command, seed, count = line.split()
            future = pool.submit(answer, reader, int(seed), int(count), verify=command == "verify")
            print(json.dumps(future.result()), file=answers)
