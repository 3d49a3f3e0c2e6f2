"""Training on converted data with points without values: the loss is that of the others alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from pelagos.data_pipelines.convert import ConvertOptions
from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import convert, evaluate, pretrain
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory

SHAPE = (10, 3, 16, 16)  # member, time, y, x: 8 train, 1 validates, 1 tests
LAND = np.zeros(SHAPE[2:], bool)
LAND[4:10, 6:] = True
MAPPING = "fields: [{file: t.npy, axes: [n, t, y, x], names: [t]}]"
MakeJob = Callable[..., PretrainJob]


def sea(name: str = "t") -> npt.NDArray[np.float32]:
    """Temperatures with clouds that move, and a land without any."""
    rng = np.random.default_rng(2)
    values = rng.normal(285, 3, SHAPE).astype(np.float32)
    values[rng.random(SHAPE) < 0.1] = np.nan
    values[..., LAND] = np.nan
    return values


def converted(
    directory: Path, values: npt.NDArray[np.float32], field: str = "t", **options: Any
) -> str:
    directory.mkdir()
    np.save(directory / "t.npy", values)
    mapping = directory / "map.yaml"
    mapping.write_text(MAPPING.replace("[t]}", f"[{field}]}}"))
    target = directory / "out.zarr"
    convert.run(str(directory), str(target), ConvertOptions(mapping=str(mapping), **options))
    return str(target)


@pytest.fixture
def make(tmp_path: Path) -> MakeJob:
    def job(uris: list[str], fields: list[str], *changes: str, **more: Any) -> PretrainJob:
        tree = {
            "job": "pretrain",
            "name": "run",
            "runs_dir": str(tmp_path / "runs"),
            "data": {
                "mixture": [{"uri": uri} for uri in uris],
                "fields": fields,
                "global_batch_size": 4,
            },
            "model": {"name": "fno-nano"},
            "objective": {"name": "next_step"},
            "schedule": {"total_steps": 3},
            "validation": {"every_steps": 3, "num_samples": 2},  # one of each window
            "resources": {"launcher": "none"},
            "tracking": {"uri": None},
            **more,
        }
        made = parse_job(yaml.safe_dump(tree), "job", changes)
        assert isinstance(made, PretrainJob)
        return made

    return job


@pytest.mark.parametrize("loss", ["ratio", "vrmse"])
def test_the_loss_is_that_of_the_sea_alone(tmp_path: Path, make: MakeJob, loss: str) -> None:
    """Forecasts of the trained network, scored by numpy on values that never were in a dataset."""
    values = sea()
    uri = converted(tmp_path / "a", values, missing="mask")
    job = make([uri], ["t", "mask"], f"objective.config.loss={loss}")
    result = pretrain.run(job)
    forecaster, _ = Forecaster.from_run(RunDirectory.open(job.runs_dir, "run"))
    train = values[slice(*open_dataset(uri).spec.splits["train"])].astype(float)
    mean, std = np.nanmean(train), np.nanstd(train)
    (member,) = range(*open_dataset(uri).spec.splits["validation"])
    frames = np.stack([values[member], np.isfinite(values[member])], axis=1)[:2]
    lead = torch.full((2,), open_dataset(uri).spec.frame_interval)
    forecast = forecaster.predict(torch.tensor(frames.astype("f4")), lead).numpy()
    assert np.array_equal(np.isnan(forecast[:, 0]), np.isnan(values[member, :2]))
    assert np.array_equal(forecast[:, 1], frames[:, 1])
    # points that were under a cloud have no forecast; the loss takes what the network says there
    blank = np.nan_to_num(frames, nan=mean)
    normalized = torch.tensor(((blank - [[[mean]], [[0]]]) / [[[std]], [[1]]]).astype("f4"))
    said = forecaster.predict_normalized(normalized, lead)[:, 0].double().numpy()
    truth = (values[member, 1:].astype(float) - mean) / std
    difference, axes = said - truth, (1, 2)
    if loss == "ratio":
        expected = np.nansum(abs(difference)) / np.nansum(abs(truth))
    else:
        squares, variance = np.nanmean(difference**2, axis=axes), np.nanvar(truth, axis=axes)
        expected = np.sqrt(squares / variance).mean()
    assert result.metrics["validation_loss"] == pytest.approx(expected, rel=1e-4)
    everywhere = np.abs(said - np.nan_to_num(truth)).sum() / np.abs(np.nan_to_num(truth)).sum()
    assert abs(everywhere / expected - 1) > 0.01  # which the test would notice


def test_training_does_not_depend_on_what_fills_the_gaps(tmp_path: Path, make: MakeJob) -> None:
    found = []
    for name, options in (("mean", {}), ("number", {"fill_value": -50.0})):
        uri = converted(tmp_path / name, sea(), missing="mask", **options)
        job = make([uri], ["t", "mask"], f"name={name}", "objective.config.normalize_samples=true")
        pretrain.run(job)
        run = RunDirectory.open(job.runs_dir, name)
        forecaster, _ = Forecaster.from_run(run)
        found.append(([m["loss"] for m in run.metrics()], forecaster.model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


def test_the_split_of_a_batch_does_not_matter(tmp_path: Path, make: MakeJob) -> None:
    uri, losses = converted(tmp_path / "a", sea(), missing="mask"), []
    for micro, name in ((4, "whole"), (1, "split")):
        job = make([uri], ["t", "mask"], f"parallel.micro_batch_size={micro}", f"name={name}")
        pretrain.run(job)
        losses.append([m["loss"] for m in RunDirectory.open(job.runs_dir, name).metrics()])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=0)


def test_masks_are_in_the_description_and_old_ones_load_without(
    tmp_path: Path, make: MakeJob
) -> None:
    job = make([converted(tmp_path / "a", sea(), missing="mask")], ["t", "mask"])
    pretrain.run(job)
    forecaster, _ = Forecaster.from_run(RunDirectory.open(job.runs_dir, "run"))
    forecaster.save(tmp_path / "saved")
    path = tmp_path / "saved/forecaster.json"
    description = json.loads(path.read_text())
    assert description["objective"]["masks"] == {"t": "mask"}
    loaded = Forecaster.load(tmp_path / "saved")
    fields = torch.tensor(np.stack([sea()[0, 0], np.isfinite(sea()[0, 0])])[None].astype("f4"))
    lead = torch.ones(1)
    forecast = loaded.predict(fields, lead)
    assert torch.equal(forecast.nan_to_num(), forecaster.predict(fields, lead).nan_to_num())
    # an absent mask is 1: every point has a value
    full = torch.full_like(fields, 285.0)
    assert bool(torch.isfinite(loaded.predict(full, lead, absent=["mask"])[:, 0]).all())
    full[:, 1] = 1.0
    absent = loaded.predict(full, lead, absent=["mask"])
    assert torch.equal(absent[:, 0], loaded.predict(full, lead)[:, 0])
    del description["objective"]["masks"]
    path.write_text(json.dumps(description))
    old = Forecaster.load(tmp_path / "saved").predict(full, lead)
    assert torch.equal(old, loaded.predict(full, lead))


def test_a_dataset_without_gaps_trains_next_to_one_with_them(tmp_path: Path, make: MakeJob) -> None:
    whole = np.nan_to_num(sea(), nan=280.0)
    uris = [
        converted(tmp_path / "a", sea(), missing="mask"),
        converted(tmp_path / "b", whole, missing="mask"),
    ]
    job = make(uris, ["t", "mask"])
    mixture = checked(job).mixture
    assert mixture.masks == {"t": "mask"}
    assert Blueprint(job).objective.group_names == ("t",)
    frames = np.empty(mixture.sample_shape, np.float32)
    mixture.read(1, 0, (0, 1), frames)
    assert bool((frames[:, 1] == 1).all())
    # an evaluation sees what training saw: of the dataset without a mask 1, not an absent field
    pretrain.run(job)
    forecaster, _ = Forecaster.from_run(RunDirectory.open(job.runs_dir, "run"))
    view = forecaster.view(open_dataset(uris[1]), {})
    assert view.present == (True, True)
    np.testing.assert_array_equal(view.read(0, (0, 1)).numpy(), frames)


def test_jobs_that_cannot_know_the_gaps_are_rejected(tmp_path: Path, make: MakeJob) -> None:
    uri = converted(tmp_path / "a", sea(), missing="mask")
    with pytest.raises(
        ConfigError, match="t has points without a value, and mask marks them: .* data.fields"
    ):
        checked(make([uri], ["t"]))
    with pytest.raises(ConfigError, match="'spectral' takes modes of whole grids, but t has"):
        checked(make([uri], ["t", "mask"], "objective.config.loss=spectral"))
    groups = {"name": "next_step", "config": {"field_groups": {"all": ["t", "mask"]}}}
    with pytest.raises(ConfigError, match="field group 'all' forecasts mask"):
        checked(make([uri], ["t", "mask"], objective=groups))
    raw = make([uri], ["t", "mask"], "data.normalization=none")
    options = Blueprint(raw).objective_options
    assert options["masks"] == {"t": "mask"}
    constants = {"mean": {"t": 280.0, "mask": 0.5}, "std": {"t": 3.0, "mask": 0.5}}
    job = make([uri], ["t", "mask"])
    data = job.data.model_dump(mode="json") | {"normalization": constants}
    with pytest.raises(ConfigError, match="normalisation of 'mask' has mean 0.5 and std 0.5"):
        checked(make([uri], [], data=data))
    data = job.data.model_dump(mode="json")
    data["mixture"][0]["offset"] = {"mask": 1.0}
    with pytest.raises(ConfigError, match="offset for mask, which marks where other fields"):
        checked(make([uri], [], data=data))


def test_datasets_that_disagree_on_masks_are_rejected(tmp_path: Path, make: MakeJob) -> None:
    def two(name: str, masked: str, whole: str) -> str:
        """Two fields, one of them masked by `mask`."""
        directory = tmp_path / name
        directory.mkdir()
        np.save(directory / "a.npy", sea())
        np.save(directory / "b.npy", np.nan_to_num(sea(), nan=280.0))
        mapping = directory / "map.yaml"
        rows = [
            {"file": file, "axes": ["n", "t", "y", "x"], "names": [field]}
            for file, field in (("a.npy", masked), ("b.npy", whole))
        ]
        mapping.write_text(yaml.safe_dump({"fields": rows}))
        options = ConvertOptions(mapping=str(mapping), missing="mask")
        convert.run(str(directory), str(tmp_path / f"{name}.zarr"), options)
        return str(tmp_path / f"{name}.zarr")

    uris = [two("first", "t", "s"), two("second", "s", "t")]
    with pytest.raises(ConfigError, match="field 't' is masked by 'mask' in .*first.*, but not in"):
        checked(make(uris, ["t", "s", "mask"]))


def test_evaluation_scores_the_sea_alone(tmp_path: Path, make: MakeJob) -> None:
    """Persistence by numpy on the source's values; the rollout from forecasts made one by one."""
    values = sea()
    uri = converted(tmp_path / "a", values, missing="mask")
    job = make([uri], ["t", "mask"])
    pretrain.run(job)
    question = EvaluateJob(
        run="run", runs_dir=job.runs_dir, tracking=False, stability_steps=4, ensemble_size=2
    )
    told = evaluate.run(question)
    (found,) = told.metrics["datasets"]
    spec = open_dataset(uri).spec
    (member,) = range(*spec.splits["test"])
    truth = values[member].astype(float)
    mean = np.nanmean(values[slice(*spec.splits["train"])].astype(float))
    first = np.nan_to_num(truth[0], nan=mean)  # what is not known at the start is the mean
    forecaster, _ = Forecaster.from_run(RunDirectory.open(job.runs_dir, "run"))
    shift, scale = forecaster.normalization.mean[0], forecaster.normalization.std[0]
    clear = np.isfinite(truth[0])
    state = np.stack([np.where(clear, (truth[0] - shift) / scale, 0.0), clear])
    interval = torch.full((1,), spec.frame_interval)
    for lead in (0, 1):
        there = np.isfinite(truth[lead + 1])
        target = truth[lead + 1][there]
        said = forecaster.predict_normalized(torch.tensor(state[None].astype("f4")), interval)[0]
        assert np.array_equal(said[1].numpy(), clear)
        forecasts = {"persistence": first, "autoregressive": said[0].double() * scale + shift}
        for method, forecast in forecasts.items():
            error = np.abs(np.asarray(forecast)[there] - target).sum() / target.sum()
            per_trajectory = found["scores"][method]["relative_l1"]["per_trajectory"]
            assert per_trajectory[0][lead][0] == pytest.approx(error, rel=1e-4)
        state = np.stack([np.where(clear, said[0].double().numpy(), 0.0), clear])
    assert told.report.exists()
