"""The model that `predict` and `rollout` use: a run's, an exported directory, the hub's, or MLflow's."""

from pathlib import Path

import torch

from pelagos.jobs.run_access.finding import find
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.locations import is_hub_id
from pelagos.platform.config.clusters import load_clusters
from pelagos.platform.config.finetune import REGISTRY_SCHEME

_JOB = "job.yaml"  # every run's directory has it


def find_forecaster(
    name: str,
    runs_dir: str | None = None,
    weights: str = "auto",
    tracking_uri: str | None = None,
    cluster: str | None = None,
) -> Forecaster:
    """Return the forecaster that a name means, on a GPU if there is one.

    Args:
        name: a run as every verb finds it, also RUN@best or RUN@STEP; a model directory; `OWNER/NAME` of
            the hub; `models:/NAME`.
        runs_dir, cluster: look for a run, only there.
        weights: of a run: `model`, `ema`, or `auto`, the averaged ones where the run keeps them.

    Raises:
        ValueError: there is none, or the name means both a run and a directory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(name).expanduser()
    is_directory = path.is_dir() and not (path / _JOB).is_file()
    is_plain = "/" not in name and runs_dir is None and cluster is None
    if is_directory and is_plain and (Path("runs") / name / _JOB).is_file():
        raise ValueError(
            f"{name} is both a directory here and a run: write ./{name} for the directory, or "
            f"{name}@last for the run"
        )
    if name.startswith(REGISTRY_SCHEME) or is_directory:
        return Forecaster.load(name, tracking_uri=tracking_uri).to(device)
    address, at, which = name.partition("@")
    if is_hub_id(name) and not _is_run_address(name):
        return Forecaster.load(name).to(device)
    if at and not which:
        raise ValueError(f"{name!r}: expected a checkpoint behind the @: last, best or a step")
    try:
        found = find(address, runs_dir, cluster).directory()
    except ValueError as error:
        raise ValueError(
            f"there is no model {name}: it is no directory here, and {error}. Expected a run, a "
            "directory that `pelagos export` wrote, OWNER/NAME on the Hugging Face hub, or models:/NAME "
            "in MLflow"
        ) from error
    import_plugins_of(found)
    return Forecaster.from_run(found, which or "last", weights)[0].to(device)


def _is_run_address(name: str) -> bool:
    """Whether PLACE/NAME is a run of a directory here, or of a cluster."""
    return (Path(name).expanduser() / _JOB).is_file() or name.partition("/")[0] in load_clusters()
