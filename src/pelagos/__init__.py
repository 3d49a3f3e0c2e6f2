"""Pelagos: distributed pretraining and fine-tuning of foundation models for PDEs and images."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelagos.data_pipelines.store import open_dataset as open_dataset
    from pelagos.jobs.interactive.runs import Evaluation as Evaluation
    from pelagos.jobs.interactive.runs import Run as Run
    from pelagos.jobs.interactive.runs import open_run as open_run
    from pelagos.jobs.interactive.runs import train as train
    from pelagos.jobs.weights.forecaster import Forecaster as Forecaster

# What is promised here, and where it is: nothing is imported before it is asked for.
_PROMISED = {
    **dict.fromkeys(("train", "open_run", "Run", "Evaluation"), "pelagos.jobs.interactive.runs"),
    "Forecaster": "pelagos.jobs.weights.forecaster",
    "open_dataset": "pelagos.data_pipelines.store",
}

try:
    __version__ = version("pelagos")
except PackageNotFoundError:  # a bare checkout on sys.path, never installed
    __version__ = "0.0.0+uninstalled"


def __getattr__(name: str) -> Any:
    if name not in _PROMISED:
        raise AttributeError(f"module 'pelagos' has no attribute {name!r}")
    return getattr(import_module(_PROMISED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PROMISED])
