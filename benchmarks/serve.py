"""Requests and samples per second of `pelagos serve`, beside batch prediction in the same run.

    python benchmarks/serve.py MODEL                     # a run, or an exported directory
    python benchmarks/serve.py --untrained poseidon-t    # random weights: as fast as trained ones
    python benchmarks/serve.py MODEL --requests 400 --clients 32 --format json

First `Forecaster.predict` forecasts as many samples in batches of the server's size, in this process.
Then clients on the same machine, each a thread with one connection, send that number of requests. They
and the server share the cores, so the ratio is a lower bound of what a client elsewhere sees.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from pelagos.infra.json_text import parse_json
from pelagos.jobs.forecasting.finding import find_forecaster
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.models.registry import create_model

FIELDS = ["density", "velocity-x", "velocity-y", "pressure"]
TYPES = {"npy": "application/x-npy", "json": "application/json"}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if options.untrained:
            model = str(Path(scratch) / "model")
            untrained(options.untrained, options.grid).save(Path(model))
        forecaster = find_forecaster(model)
        fields, lead = inputs(forecaster, options.samples)
        show_machine(forecaster, fields, options)
        alone = batch_prediction(forecaster, fields, lead, options)
        print(f"batch prediction: {alone:.1f} samples/s in batches of {options.batch_size}")
        serve(model, fields, lead, alone, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--untrained", metavar="NAME", help="a poseidon of the registry")
    parser.add_argument("--grid", type=int, default=64, help="of an untrained network")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1, help="in one request")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--format", choices=sorted(TYPES), default="npy")
    options = parser.parse_args()
    if (options.model is None) == (options.untrained is None):
        parser.error("give a model, or --untrained NAME")
    return options


def untrained(name: str, side: int) -> Forecaster:
    torch.manual_seed(0)
    model = create_model(name, in_channels=4, out_channels=4, image_size=side)
    ones = dict.fromkeys(FIELDS, "1")
    description: dict[str, Any] = {
        "model": {"name": name, "config": {"image_size": side}},
        "objective": {"name": "all2all", "time_scale": 1.0},
        "fields": FIELDS,
        "normalization": {"fields": FIELDS, "mean": [0.0] * 4, "std": [1.0] * 4},
        "datasets": [
            {
                "uri": "none",
                "name": "none",
                "fingerprint": "",
                "units": ones,
                "grid_shape": [side, side],
                "lead_times": [0.0, 0.1],
            }
        ],
    }
    return Forecaster(description, model.state_dict())


def inputs(forecaster: Forecaster, samples: int) -> tuple[np.ndarray, float]:
    grid, frames = forecaster.trained_on.grids[0], forecaster.input_frames
    shape = (samples, *((frames,) if frames > 1 else ()), len(forecaster.fields), *grid)
    normal = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    constants = forecaster.normalization
    mean, std = (
        np.asarray(values, np.float32).reshape(-1, *(1,) * len(grid))
        for values in (constants.mean, constants.std)
    )
    return mean + std * normal, forecaster.lead_of_step(None)


def show_machine(forecaster: Forecaster, fields: np.ndarray, options: argparse.Namespace) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    device = next(forecaster.model.parameters()).device
    name = torch.cuda.get_device_name() if device.type == "cuda" else found[1] if found else "CPU"
    parameters = sum(p.numel() for p in forecaster.model.parameters())
    print(
        f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Ray {ray.__version__}; network of "
        f"{parameters:,} parameters on {device}, {torch.get_num_threads()} threads, request "
        f"{fields.shape} as {options.format}"
    )


def batch_prediction(
    forecaster: Forecaster, fields: np.ndarray, lead: float, options: argparse.Namespace
) -> float:
    """Samples per second."""
    total = options.requests * options.samples
    size = min(options.batch_size, total)
    batch = np.resize(fields, (size, *fields.shape[1:]))
    forecaster.predict(batch, lead)
    start = time.perf_counter()
    for first in range(0, total, size):
        forecaster.predict(batch[: min(size, total - first)], lead)
    return total / (time.perf_counter() - start)


def body_of(fields: np.ndarray, lead: float, kind: str) -> tuple[str, bytes]:
    if kind == "json":
        return "/predict", json.dumps({"fields": fields.tolist(), "lead_time": lead}).encode()
    stream = io.BytesIO()
    np.save(stream, fields)
    return f"/predict?lead_time={lead}", stream.getvalue()


def serve(
    model: str, fields: np.ndarray, lead: float, alone: float, options: argparse.Namespace
) -> None:
    command = [sys.executable, "-m", "pelagos.cli.main", "serve", model, "--port", "0"]
    command += ["--batch-size", str(options.batch_size), "--replicas", str(options.replicas)]
    command += ["--max-waiting", str(options.clients), "--timeout", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(
                found[1]
                for line in process.stdout
                if (found := re.search(r"http://([\d.]+:\d+)/predict", line))
            )
            path, body = body_of(fields, lead, options.format)
            ask(address, path, body, options, 2 * options.clients)  # connections and caches
            before = batches(address)
            seconds, latencies = ask(address, path, body, options, options.requests)
            after = batches(address)
        finally:
            process.send_signal(signal.SIGTERM)
    passes, samples = (b - a for a, b in zip(before, after, strict=True))
    rate = options.requests / seconds
    cuts = statistics.quantiles(latencies, n=20)
    print(
        f"served: {rate:.1f} requests/s, {rate * options.samples:.1f} samples/s, "
        f"{rate * options.samples / alone:.2f} of batch prediction; {options.requests} requests of "
        f"{len(body):,} bytes by {options.clients} clients to {options.replicas} replicas; latency "
        f"median {1e3 * cuts[9]:.0f} ms, 95 % {1e3 * cuts[18]:.0f} ms; {passes:.0f} passes of "
        f"{samples / passes:.1f} samples on average"
    )


def ask(
    address: str, path: str, body: bytes, options: argparse.Namespace, count: int
) -> tuple[float, list[float]]:
    """Send `count` requests; return the seconds of all, and of each."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(count):
        waiting.put(number)
    latencies: list[float] = []
    problems: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        while not problems:
            try:
                waiting.get_nowait()
            except queue.Empty:
                break
            start = time.perf_counter()
            connection.request("POST", path, body, {"Content-Type": TYPES[options.format]})
            answer = connection.getresponse()
            content = answer.read()
            latencies.append(time.perf_counter() - start)
            if answer.status != 200:
                problems.append(str(parse_json(content)))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems or len(latencies) != count:
        raise SystemExit(f"{len(latencies)} of {count} answers: {problems[:1]}")
    return time.perf_counter() - start, latencies


def batches(address: str) -> tuple[float, float]:
    """Passes through the network so far, and their samples."""
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = "pelagos_serve_batch_samples"
    return found[f"{name}_count"], found[f"{name}_sum"]


if __name__ == "__main__":
    main()
