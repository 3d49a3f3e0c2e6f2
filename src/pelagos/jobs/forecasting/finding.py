"""The model that `predict` and `rollout` use: a run's, an exported directory, the hub's, or MLflow's."""

from pathlib import Path

import torch

from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config.finetune import REGISTRY_SCHEME
from pelagos.platform.records.runs import RunDirectory, list_runs


def find_forecaster(
    name: str, runs_dir: str = "runs", weights: str = "auto", tracking_uri: str | None = None
) -> Forecaster:
    """Return the forecaster that a name means, on a GPU if there is one.

    Args:
        name: a run, RUN@best or RUN@STEP; a model directory; `OWNER/NAME` of the hub; `models:/NAME`.
        weights: of a run: `model`, `ema`, or `auto`, the averaged ones where the run keeps them.

    Raises:
        ValueError: there is none, or the name means both a run and a directory.
    """
    return _found(name, runs_dir, weights, tracking_uri).to(
        torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )


def _found(name: str, runs_dir: str, weights: str, tracking_uri: str | None) -> Forecaster:
    run, _, which = name.partition("@")
    is_plain = not name.startswith(REGISTRY_SCHEME) and "/" not in run
    is_run = is_plain and (Path(runs_dir) / run / "job.yaml").exists()
    is_directory = Path(name).expanduser().is_dir()
    if is_run and is_directory:
        raise ValueError(
            f"{name} is both a run in {runs_dir} and a directory here: write ./{name} for the "
            f"directory, or {run}@last for the run"
        )
    if is_run:
        directory = RunDirectory.open(runs_dir, run)
        import_plugins_of(directory)
        return Forecaster.from_run(directory, which or "last", weights)[0]
    if is_plain and not is_directory:
        known = ", ".join(found.name for found in list_runs(runs_dir)) or "none"
        raise ValueError(
            f"there is no model {name}: expected a run (in {runs_dir}: {known}), a directory that "
            "`pelagos export` wrote, OWNER/NAME on the Hugging Face hub, or models:/NAME in MLflow"
        )
    return Forecaster.load(name, tracking_uri=tracking_uri)
