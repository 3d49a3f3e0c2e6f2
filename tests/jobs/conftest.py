"""A trained run and its exported directory, and its forecasts by the plain network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pelagos.infra.json_text import parse_json
from pelagos.jobs import export
from pelagos.jobs.training.blueprint import build_parts
from pelagos.models.poseidon import ScOT
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

TIME_SCALE = 0.2  # of the job's objective


@pytest.fixture(scope="session")
def trained(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunDirectory:
    """A tiny Poseidon after eight steps; fields density, velocity-x, velocity-y, pressure."""
    directory = tmp_path_factory.mktemp("trained")
    job = parse_job(tiny_job_text(datasets, directory, "waves"), "the test")
    assert isinstance(job, PretrainJob)
    run = RunDirectory.create(job)
    train(job, run, build_parts, {})
    return run


@pytest.fixture(scope="session")
def exported(trained: RunDirectory) -> Path:
    """The run's model directory."""
    directory = trained.path.parent.parent / "exported"
    export.run(trained.name, directory, runs_dir=str(trained.path.parent))
    return directory


@pytest.fixture(scope="session")
def by_hand(exported: Path) -> Callable[[np.ndarray, float], np.ndarray]:
    """`by_hand(fields [B, C, y, x], lead)`: the plain network and the constants, no forecaster."""
    network = ScOT.from_pretrained(exported)
    constants = parse_json((exported / "forecaster.json").read_bytes())["normalization"]
    mean, std = (torch.tensor(constants[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def forecast(fields: np.ndarray, lead: float) -> np.ndarray:
        seen = (torch.tensor(fields, dtype=torch.float32) - mean) / std
        with torch.no_grad():
            answer = network(seen, torch.full((len(fields),), lead / TIME_SCALE)).output
        return (answer * std + mean).numpy()

    return forecast
