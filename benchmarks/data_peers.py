"""Reading data: Pelagos against MosaicML Streaming, tensorstore, zarr with s3fs, LitData and The Well.

    python benchmarks/data_peers.py
    python benchmarks/data_peers.py --peers tensorstore mds --repetitions 9 --tables local

Each peer gets a virtual environment of its own (made once, under --environments) and its own copy of
one array, and reads in a process of its own; in each repetition all take turns. Every window that
counts is held against the raw data. Table 1: random windows from local files, hot page cache, one
thread. Tables 2 and 3: torch batches from nginx on the loopback interface (loopback_origin.py), without
and with latency. CPU time and ratios within one repetition can be trusted on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import data as local
import numpy as np
import torch
from loopback_origin import BUCKET, Origin, serve
from peer_protocol import BATCH, SAMPLED, FloatArray, Setting

HERE = Path(__file__).parent
ANSWER_SECONDS = 300
PELAGOS = "pelagos"
BASE = "Pelagos, none"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        peer: name of the reader, and of its environment.
        copy: name of its copy of the data.
        share: the part of the windows that it reads in a repetition, being slow.
        is_remote: reads from the origin; otherwise local files stand in for it.
        has_workers: reads in processes of its own, whose CPU time is not counted.
    """

    label: str
    peer: str
    copy: str
    share: float = 1.0
    is_remote: bool = True
    has_workers: bool = False


# Beside torch, of the version that Pelagos runs with.
REQUIREMENTS = {
    "tensorstore": ["tensorstore==0.1.86"],
    "zarr": ["zarr==3.1.6", "s3fs==2026.9.0"],
    "mds": ["mosaicml-streaming==0.13.0"],
    "litdata": ["litdata==0.2.76"],
    "the_well": ["the_well==1.2.0"],
}
COPIES = {"mds": "mds", "litdata": "litdata", "the_well": "the_well"}
LOCAL_ROWS = [
    Row(BASE, PELAGOS, "none.zarr"),
    Row("Pelagos, lz4", PELAGOS, "lz4.zarr"),
    Row("tensorstore, none", "tensorstore", "none.zarr"),
    Row("tensorstore, lz4", "tensorstore", "lz4.zarr"),
    Row("zarr-python, none", "zarr", "none.zarr", share=0.25),
    Row("MDS, pre-cut windows", "mds", "mds"),
    Row("LitData, pre-cut windows", "litdata", "litdata", share=0.25),
    Row("The Well, HDF5", "the_well", "the_well", share=0.25),
]
REMOTE_ROWS = [
    Row(BASE, PELAGOS, "none.zarr"),
    Row("Pelagos, lz4", PELAGOS, "lz4.zarr"),
    Row("tensorstore, none", "tensorstore", "none.zarr"),
    Row("tensorstore, lz4", "tensorstore", "lz4.zarr"),
    Row("zarr + s3fs, none", "zarr", "none.zarr", share=0.125),
    Row("MDS, first epoch", "mds", "mds", has_workers=True),
    Row("MDS, local files *", "mds", "mds", is_remote=False, has_workers=True),
    Row("LitData, local files *", "litdata", "litdata", 0.5, is_remote=False, has_workers=True),
    Row("The Well, local files *", "the_well", "the_well", 0.25, is_remote=False, has_workers=True),
]
STAND_INS = """* local files stand in for the origin, which is generous:
  MDS: all of it cached, as in its second epoch;
  LitData: its client of chunks refuses an endpoint without TLS;
  The Well: finds its files by listing, which the origin does not offer."""


class PeerError(Exception):
    """A peer could not be installed, or did not answer, or answered with other data."""


class Worker:
    """A process that answers the commands of peer_protocol.py."""

    def __init__(self, row: Row, python: str, task: str, setting: Setting) -> None:
        self.row = row
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command_of(row.peer, python, task, setting),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment_of(row.peer),
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        stream = self.process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], ANSWER_SECONDS)
        line = stream.readline() if ready else ""
        if not line:
            reason = f"no answer in {ANSWER_SECONDS} s" if not ready else self.last_words()
            raise PeerError(f"{self.row.label}: {reason}")
        return dict(json.loads(line))

    def ask(self, command: str, seed: int, count: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, seed, count, file=self.process.stdin, flush=True)
        return self.answer()

    def last_words(self) -> str:
        self.process.wait(10)
        self.log.seek(0)
        return last_line(self.log.read().decode(errors="replace"))

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def command_of(peer: str, python: str, task: str, setting: Setting) -> list[str]:
    script = "peer_pelagos.py" if peer == PELAGOS else "peer_readers.py"
    return [python, str(HERE / script), peer, task, setting.to_json()]


def environment_of(peer: str) -> dict[str, str]:
    """One thread of arithmetic; credentials that nobody checks; for peers no path of Pelagos."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or peer == PELAGOS}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["ended without a word"])[-1][:300]


def install(peer: str, folder: Path, python: str) -> str:
    """Make the peer's environment unless it stands; returns its interpreter."""
    wanted = [f"torch=={torch.__version__.split('+')[0]}", *REQUIREMENTS[peer]]
    root = folder / peer
    interpreter, stamp = root / "bin" / "python", root / "installed.txt"
    if stamp.exists() and stamp.read_text().split() == wanted:
        return str(interpreter)
    print(f"installing {' '.join(wanted)} in {root} …", flush=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [python, "-m", "venv", str(root)],
        [str(interpreter), "-m", "pip", "install", "--quiet", *wanted],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment_of(peer), check=False
        )
        if done.returncode:
            raise PeerError(f"{peer} could not be installed: {last_line(done.stderr)}")
    stamp.write_text("\n".join(wanted))
    return str(interpreter)


def prepare(peer: str, python: str, setting: Setting) -> None:
    done = subprocess.run(
        command_of(peer, python, "prepare", setting),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment_of(peer),
        check=False,
    )
    if done.returncode:
        raise PeerError(f"{peer} could not write its copy: {last_line(done.stderr)}")


class Truth:
    """What windows must contain."""

    def __init__(self, raw: FloatArray, length: int) -> None:
        self.raw, self.length = raw, length
        bits = raw.view(np.uint32)[SAMPLED]
        self.sums = bits.sum(axis=(2, 3, 4), dtype=np.uint64)  # of each frame

    def check(self, label: str, answer: dict[str, Any], *, verify: bool) -> None:
        for trajectory, start, value in answer["seen"]:
            if not 0 <= trajectory < len(self.raw):
                raise PeerError(
                    f"{label}: a sample's own number is garbage ({trajectory}, {start})"
                )
            frames = slice(start, start + self.length)
            if verify:
                expected = zlib.crc32(self.raw[trajectory, frames].tobytes())
            else:
                expected = int(self.sums[trajectory, frames].sum())
            if value != expected:
                raise PeerError(
                    f"{label}: trajectory {trajectory}, frame {start} differs from the raw data"
                )
        if not answer["seen"]:
            raise PeerError(f"{label}: nothing was read")


@dataclass
class Result:
    """One entry per repetition."""

    speed: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    later_speed: list[float] = field(default_factory=list)  # without the first batch
    requests: float = 0.0
    bytes: float = 0.0


class Bench:
    """What all tables share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.shape = (options.trajectories, options.frames, 4, options.size, options.size)
        raw = local.make_data(self.shape)
        np.save(folder / "raw.npy", raw)
        (folder / BUCKET).mkdir()
        for compression in ("none", "lz4"):
            local.write(folder / BUCKET, raw, compression)
        self.truth = Truth(raw, options.length)
        self.pythons = {PELAGOS: sys.executable}
        print(f"data {self.shape} float32, {raw.nbytes / 1e6:.0f} MB, windows of {options.length}")

    def setting(self, copy: str, endpoint: str | None = None) -> Setting:
        return Setting(
            raw=str(self.folder / "raw.npy"),
            copy=str(self.folder / BUCKET / copy),
            shape=self.shape,
            length=self.options.length,
            in_flight=self.options.in_flight,
            endpoint=endpoint,
            path=copy,
            workers=self.options.workers,
        )

    def add_peer(self, peer: str) -> None:
        """Install it and let it write its copy; say so where that fails."""
        try:
            python = install(peer, self.options.environments, self.options.python)
            if peer in COPIES:
                prepare(peer, python, self.setting(COPIES[peer]))
            self.pythons[peer] = python
        except PeerError as error:
            print(f"left out: {error}", flush=True)

    @contextlib.contextmanager
    def workers(self, rows: list[Row], endpoint: str | None) -> Iterator[list[Worker]]:
        """A running worker for each row that can be had, its data verified and its pages warm."""
        task = "windows" if endpoint is None else "batches"
        started: list[Worker] = []
        running: list[Worker] = []
        try:
            for row in rows:
                if row.peer in self.pythons:
                    setting = self.setting(row.copy, endpoint if row.is_remote else None)
                    started.append(Worker(row, self.pythons[row.peer], task, setting))
            for worker in started:
                try:
                    worker.answer()
                    answer = worker.ask("verify", 0, 2 * BATCH)
                    self.truth.check(worker.row.label, answer, verify=True)
                    running.append(worker)
                except PeerError as error:
                    print(f"left out: {error}", flush=True)
            yield running
        finally:
            for worker in started:
                worker.close()

    def count(self, row: Row, *, is_local: bool) -> int:
        epoch = self.shape[0] * (self.shape[1] - self.options.length + 1)
        wanted = self.options.windows if is_local else epoch
        return max(BATCH, int(wanted * row.share) // BATCH * BATCH)

    def compare(self, rows: list[Row], endpoint: str | None, origin: Origin | None) -> None:
        """All rows in turn, repetition after repetition; prints the table."""
        with self.workers(rows, endpoint) as workers:
            results: dict[Row, Result] = {worker.row: Result() for worker in workers}
            for repetition in range(1, self.options.repetitions + 1):
                for worker in list(workers):
                    row = worker.row
                    count = self.count(row, is_local=endpoint is None)
                    if origin is not None:
                        origin.forget()
                    try:
                        answer = worker.ask("read", repetition, count)
                        self.truth.check(row.label, answer, verify=False)
                    except PeerError as error:
                        print(f"left out: {error}", flush=True)
                        workers.remove(worker)
                        results.pop(row)
                        continue
                    self.record(results[row], answer, origin)
        print_table(results, is_remote=endpoint is not None)

    def record(self, result: Result, answer: dict[str, Any], origin: Origin | None) -> None:
        result.speed.append(answer["windows"] / answer["seconds"])
        result.cpu_milliseconds.append(answer["cpu_seconds"] / answer["windows"] * 1e3)
        if origin is not None:
            first = answer["first_seconds"]
            result.first_seconds.append(first)
            later = max(1, answer["windows"] - BATCH)
            result.later_speed.append(later / (answer["seconds"] - first))
            requests, size = origin.counts()
            window_bytes = 4 * self.options.length * np.prod(self.shape[2:])
            result.requests = requests / len(answer["seen"])
            result.bytes = size / len(answer["seen"]) / window_bytes


def print_table(results: dict[Row, Result], *, is_remote: bool) -> None:
    base = next((result for row, result in results.items() if row.label == BASE), None)
    if base is None:
        print("no ratios: Pelagos itself was not measured")
        return
    more = f" {'first batch, s':>15} {'ratio after it':>15} {'requests':>9} {'bytes':>6}"
    heading = f"{'windows/s':>10} {'time to Pelagos':>16} {'[min, max]':>17}"
    print(f"{'reader':26} {'CPU ms/window':>14} {heading}{more if is_remote else ''}")
    for row, result in results.items():
        ratios = [b / s for b, s in zip(base.speed, result.speed, strict=True)]
        # Worker processes' time is not this process's.
        shows_cpu = not (is_remote and row.has_workers)
        cpu = f"{statistics.median(result.cpu_milliseconds):.3f}" if shows_cpu else "-"
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        line = (
            f"{row.label:26} {cpu:>14} {statistics.median(result.speed):10.0f} "
            f"{statistics.median(ratios):16.2f} {spread:>17}"
        )
        if is_remote:
            later = zip(base.later_speed, result.later_speed, strict=True)
            line += (
                f" {statistics.median(result.first_seconds):15.2f}"
                f" {statistics.median(b / s for b, s in later):15.2f}"
                f" {result.requests:9.2f} {result.bytes:6.2f}"
            )
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=48)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--length", type=int, default=2, help="frames per window")
    parser.add_argument(
        "--windows",
        type=int,
        default=320,
        help="windows per repetition from local files; batches are as many as fill an epoch",
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--in-flight", type=int, default=16, help="windows read at once, remote")
    parser.add_argument(
        "--workers", type=int, default=2, help="of DataLoader, for those who use it"
    )
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of the delayed origin")
    parser.add_argument("--peers", nargs="*", default=list(REQUIREMENTS), choices=REQUIREMENTS)
    parser.add_argument(
        "--tables", nargs="+", default=["local", "remote", "latency"], metavar="TABLE"
    )
    cache = Path.home() / ".cache" / "pelagos-benchmarks" / "environments"
    parser.add_argument("--environments", type=Path, default=cache)
    parser.add_argument("--python", default=getattr(sys, "_base_executable", sys.executable))
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, "
        + ", ".join(r for peer in options.peers for r in REQUIREMENTS[peer])
    )
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        for peer in options.peers:
            bench.add_peer(peer)
        run(bench, options)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def run(bench: Bench, options: argparse.Namespace) -> None:
    if "local" in options.tables:
        print("\nlocal files, hot page cache, one thread, random windows")
        bench.compare(LOCAL_ROWS, None, None)
    if not {"remote", "latency"} & set(options.tables):
        return
    with serve(bench.folder, ["none.zarr", "lz4.zarr"], options.latency_ms / 1e3) as origin:
        if "remote" in options.tables:
            print(f"\ntorch batches of {BATCH} from the origin, {options.in_flight} in flight")
            bench.compare(REMOTE_ROWS, origin.endpoint, origin)
        if "latency" in options.tables and origin.delayed_endpoint is None:
            print("no delayed origin: nginx has no echo module, or --latency-ms is 0")
        elif "latency" in options.tables:
            print(f"\nthe same with {options.latency_ms:g} ms for each request")
            bench.compare(REMOTE_ROWS, origin.delayed_endpoint, origin)
        print(STAND_INS)


if __name__ == "__main__":
    main()
