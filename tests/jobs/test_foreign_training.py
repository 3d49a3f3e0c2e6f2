"""A job on Zarr arrays of another writer: described in the job, or in a file beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import yaml

from pelagos.data_pipelines.store import open_dataset
from pelagos.data_pipelines.streaming.loader import load_batch
from pelagos.data_pipelines.streaming.sampler import Sampler
from pelagos.jobs import pretrain
from pelagos.jobs.evaluate import measure
from pelagos.jobs.training.checking import checked
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob
from pelagos.platform.config.load import load_job, parse_job, resolve_yaml
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]


@pytest.fixture
def foreign(datasets: tuple[str, str], tmp_path: Path) -> str:
    """The velocities of the first dataset as xarray writes them, one array per field."""
    data = open_dataset(datasets[0]).data[...]
    axes = ("run", "time", "y", "x")
    arrays = {name: (axes, data[:, :, i]) for i, name in enumerate(("u", "v"))}
    grid = {"time": np.arange(5) * 0.05, "y": np.arange(16) / 16, "x": np.arange(16) / 16}
    xarray.Dataset(arrays, coords=grid).to_zarr(tmp_path / "waves.zarr", zarr_format=2)
    return str(tmp_path / "waves.zarr")


DESCRIPTION = {
    "name": "ns",
    "fields": [{"name": "velocity-x", "array": "u"}, {"name": "velocity-y", "array": "v"}],
    "constant_fields": {"density": 1.0},
    "splits": {"train": [0, 8], "validation": [8, 10], "test": [10, 12]},
    "grid_location": "cell",
}


def test_it_trains_and_evaluates_as_the_converted_dataset_does(
    make_job: MakeJob, foreign: str, tmp_path: Path
) -> None:
    usual = make_job("usual", tracking__uri="null", schedule__total_steps=3)
    description = tmp_path / "waves.yaml"
    description.write_text(yaml.safe_dump(DESCRIPTION))
    text = yaml.safe_load(resolve_yaml(usual))
    text["name"] = "described"
    text["data"]["mixture"][0] = {"uri": foreign, "description": str(description)}
    path = tmp_path / "described.yaml"
    path.write_text(yaml.safe_dump(text))
    described = load_job(path)
    assert isinstance(described, PretrainJob)
    # the file is part of the job: it resumes from any directory, and is submitted without the file
    assert parse_job(resolve_yaml(described), "resolved") == described
    assert "array: u" in resolve_yaml(described)
    batches = []
    for job in (usual, described):
        mixture = checked(job).mixture
        batches.append(load_batch(mixture, Sampler(mixture, 0).samples(0, 32)))
    for name, values in vars(batches[0]).items():  # the same samples in the same order, to the bit
        assert torch.equal(values, getattr(batches[1], name)), name
    pretrain.run(described)
    steps = list(RunDirectory.open(described.runs_dir, "described").metrics())
    assert [np.isfinite(m["loss/ns"]) for m in steps if "loss/ns" in m]
    (first, _), _ = measure(
        EvaluateJob(run="described", runs_dir=described.runs_dir, lead_steps=(2,))
    )
    assert (first.data.uri, len(first.trajectories)) == (foreign, 2)
    kept = json.loads((tmp_path / "waves.statistics.json").read_text())
    assert set(kept["statistics"]) == {"all", "train", "validation", "test"}


def test_what_does_not_fit_is_refused_before_the_start(
    make_job: MakeJob, foreign: str, tmp_path: Path
) -> None:
    job = make_job(
        "wrong", data__mixture=f"[{{uri: {foreign}, description: {{fields: [{{name: u}}]}}}}]"
    )
    with pytest.raises(ConfigError, match="none of the model's channels"):
        checked(job)
    job = make_job("absent", data__mixture=f"[{{uri: {foreign}, description: nowhere.yaml}}]")
    with pytest.raises(
        ConfigError, match=r"data.mixture.0.uri: nowhere.yaml: 1 problem\n.*cannot be read"
    ):
        checked(job)
    path = tmp_path / "job.yaml"
    path.write_text(resolve_yaml(job))
    with pytest.raises(ConfigError, match=r"mixture.0.description: nowhere.yaml: 1 problem"):
        load_job(path)
    with pytest.raises(ConfigError, match="did you mean 'fields'"):
        make_job("typo", data__mixture=f"[{{uri: {foreign}, description: {{field: []}}}}]")
