"""The measurements of an evaluation, made in this process or spread over Ray workers, batch by batch.

A worker makes the measurements anew, from data that is sent once: the description and weights of the
network, the job, and this process's findings on each dataset (its mean frame). It reads the data
itself. The batches are the same wherever they are measured, so the numbers are too.
"""

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pelagos import plugins
from pelagos.evaluation.forecasting.batches import (
    BatchWorker,
    Measurement,
    Unit,
    combined,
    measure_here,
    units_of,
)
from pelagos.evaluation.measures.metrics import METRICS, Metric
from pelagos.infra.ray_workers import spread
from pelagos.jobs.measuring.workers import Workers, repeatable
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.registry import Registry

Known = Any
"""What a measurement learnt of a dataset, which need not be learnt again."""
Make = Callable[[Forecaster, torch.device, Sequence[Known] | None], list[Measurement]]
"""(network, device, what is known of each measurement) -> the measurements."""


def measure_all(
    make: Make,
    known_of: Callable[[Measurement], Known],
    forecaster: Forecaster,
    workers: Workers,
) -> list[Any]:
    """Return the result of every measurement.

    Args:
        make: makes the measurements; can be pickled.
        known_of: the findings of an earlier measurement that `make` receives to repeat it.

    Raises:
        ValueError: a measurement rejects its input; no worker was started.
    """
    if not workers.in_ray:
        device = workers.device
        with repeatable(workers.cpus_per_worker, device):
            return measure_here(make(forecaster.to(device), device, None))
    cpu = torch.device("cpu")
    with repeatable(workers.cpus_per_worker, cpu):  # it averages frames
        measurements = make(forecaster, cpu, None)
    known = [known_of(measurement) for measurement in measurements]
    work = _Work(
        make,
        known,
        forecaster.description,
        forecaster.model.state_dict(),
        plugins.named_in_environment(),
        _shipped(METRICS),
        workers,
    )
    with workers.cluster():
        parts = spread(
            work,
            units_of(measurements),
            num_workers=workers.num_workers,
            cpus_per_worker=workers.cpus_per_worker,
            gpus_per_worker=workers.gpus_per_worker,
            reads_ahead=True,
        )
        return combined(measurements, parts)


def _shipped(metrics: Registry[Metric]) -> bytes:
    """Return the metrics that are not Pelagos's own, for this program's own workers.

    A worker imports plugins. What a program registers that is no plugin it cannot import: that goes
    by value.
    """
    from ray import cloudpickle as untyped

    cloudpickle: Any = untyped
    known = {"pelagos", *(name.partition(".")[0] for name in plugins.named_in_environment())}
    own = {name: metric for name, metric in metrics.items() if _top(metric) != "pelagos"}
    modules = {
        sys.modules[metric.__module__] for metric in own.values() if _top(metric) not in known
    }
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps(own)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _top(metric: Metric) -> str:
    """Return the name of the package, or the module, that defines a metric."""
    return metric.__module__.partition(".")[0]


@dataclass
class _Work:
    """Measure one batch in a Ray worker. The first batch builds the network."""

    make: Make
    known: Sequence[Known]
    description: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    plugins: Sequence[str]
    metrics: bytes
    """Those that are not Pelagos's own, to be read once the plugins are imported."""
    workers: Workers
    worker: BatchWorker | None = field(default=None, init=False)

    def __call__(self, unit: Unit, following: Unit | None) -> tuple[Unit, Any]:
        device = self.workers.device
        with repeatable(self.workers.cpus_per_worker, device):
            if self.worker is None:
                plugins.load(self.plugins)
                for name, metric in pickle.loads(self.metrics).items():
                    if name not in METRICS:
                        METRICS.register(name, metric)
                forecaster = Forecaster(self.description, self.weights).to(device)
                self.worker = BatchWorker(self.make(forecaster, device, self.known))
            return self.worker(unit, following)
