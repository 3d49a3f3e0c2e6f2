"""The workers of an evaluation: this process or Ray workers, and the device of each."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pelagos.infra.ray_cluster import ray_cluster
from pelagos.platform.config.measure import EvaluateResources
from pelagos.platform.config.schema import ResourcesConfig
from pelagos.platform.strategies.processes import rank_device


@dataclass(frozen=True)
class Workers:
    """The workers of an evaluation, all choices made."""

    in_ray: bool
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    ray_address: str | None

    @property
    def device(self) -> torch.device:
        """The device that a worker measures on, in the worker."""
        return rank_device(self.gpus_per_worker > 0)

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Join or start the Ray cluster for the length of the context, if the workers are Ray's."""
        with contextlib.ExitStack() as stack:
            if self.in_ray:
                count = self.num_workers
                cpus, gpus = count * self.cpus_per_worker, count * self.gpus_per_worker
                stack.enter_context(ray_cluster(self.ray_address, cpus, gpus))
            yield


def workers_of(wanted: EvaluateResources, trained_on: ResourcesConfig) -> Workers:
    """Return the workers that an evaluation asks for, of a run that was trained on `trained_on`.

    Raises:
        ValueError: more GPUs than this machine has.
    """
    count, gpus = wanted.num_workers, wanted.gpus_per_worker
    elsewhere = wanted.ray_address is not None
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        gpus = 1 if count <= here and not elsewhere else 0
    if gpus * count > here and not elsewhere:
        raise ValueError(
            f"resources.gpus_per_worker: num_workers({count}) x {gpus} = {gpus * count}, but "
            f"PyTorch finds {here} on this machine. Use gpus_per_worker=0, fewer workers, or the "
            "ray_address of a cluster that has enough"
        )
    asks_cluster = elsewhere and gpus > 0  # whose GPUs only a Ray worker is given
    in_ray = wanted.launcher == "ray" or (wanted.launcher is None and (count > 1 or asks_cluster))
    cpus = wanted.cpus_per_worker or trained_on.cpus_per_worker
    return Workers(in_ray, count, cpus, gpus, wanted.ray_address)


@contextmanager
def repeatable(num_threads: int, device: torch.device) -> Iterator[None]:
    """Within the context, compute with `num_threads` threads, in full fp32, summing in one order.

    On a GPU, sums by index (spectra) add in the order in which threads happen to arrive, unless torch
    is set to deterministic algorithms.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with _exact_on_gpu() if device.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _exact_on_gpu() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    is_strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # where torch has no such algorithm it says so; the numbers are no less right
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.use_deterministic_algorithms(is_strict, warn_only=only_warns)
