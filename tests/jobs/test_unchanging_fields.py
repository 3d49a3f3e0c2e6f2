"""Fields that never change, and groups of fields without samples: in no loss, no gradient, no
validation, and said."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from rich.console import Console

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs import evaluate, pretrain
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.checks import fields as field_checks
from pelagos.jobs.training.mixtures import open_datasets
from pelagos.jobs.weights.trained_network import usual_groups
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory

Values = npt.NDArray[np.float32]
MakeJob = Callable[..., PretrainJob]
SHAPE = (10, 4, 16, 16)  # trajectory, time, y, x


def noise(seed: int) -> Values:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def store(path: Path, fields: Mapping[str, Values]) -> str:
    spec = DatasetSpec(
        name=path.stem,
        equation="none",
        fields=tuple(Field(f, f) for f in fields),
        num_trajectories=SHAPE[0],
        num_frames=SHAPE[1],
        grid_shape=SHAPE[2:],
        frame_interval=0.1,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, 6), "validation": (6, 8), "test": (8, 10)},
    )
    writer = create_dataset(str(path), spec)
    data = np.stack(list(fields.values()), axis=2)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop], {})
    writer.finalize()
    return str(path)


@pytest.fixture
def make(tmp_path: Path) -> MakeJob:
    def job(
        mixture: Mapping[str, Mapping[str, Values]], fields: list[str], *changes: str, **more: Any
    ) -> PretrainJob:
        uris = [store(tmp_path / f"{name}.zarr", data) for name, data in mixture.items()]
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
            "schedule": {"total_steps": 2},
            "validation": {"every_steps": 2, "num_samples": 4},
            "resources": {"launcher": "none"},
            "tracking": {"uri": None},
            **more,
        }
        made = parse_job(yaml.safe_dump(tree), "job", changes)
        assert isinstance(made, PretrainJob)
        return made

    return job


def rounded_constant() -> Values:
    """300.1 with rounding: no two values need be equal, none is another number in float32."""
    values = np.full(SHAPE, 300.1, np.float32)
    return np.where(noise(3) > 0, np.nextafter(values, np.float32(301)), values)


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("density", np.ones(SHAPE, np.float32), "is 1 everywhere"),
        ("temperature", rounded_constant(), "is 300.1 everywhere"),
        (
            "mask",
            np.broadcast_to(noise(4)[:, :1] > 0, SHAPE).astype(np.float32),
            "is the same in every frame",
        ),
    ],
)
def test_a_field_that_never_changes_is_given_and_said_so(
    make: MakeJob, caplog: pytest.LogCaptureFixture, name: str, values: Values, why: str
) -> None:
    job = make({"data": {"u": noise(0), name: values}}, ["u", name])
    with caplog.at_level(logging.WARNING):
        mixture = checked(job).mixture
    assert f"{name} {why}" in caplog.text
    assert "not forecast" in caplog.text
    objective = Blueprint(job).objective
    assert objective.group_names == ("u",)
    assert usual_groups(["u", name], open_datasets(job)[0]) == {"u": ("u",)}
    assert all(std > 0.1 for std in mixture.normalization.std)
    result = pretrain.run(job)
    first = RunDirectory.open(job.runs_dir, "run").metrics()[0]
    # an untrained network is about as wrong as zero is: 1e7 with the constant in the mean
    assert 0.3 < first["loss"] < 3
    assert 0.3 < result.metrics["validation_loss"] < 3


def test_a_field_that_changes_somewhere_is_forecast(make: MakeJob) -> None:
    ones = np.ones(SHAPE, np.float32)
    job = make(
        {"still": {"u": noise(0), "p": ones}, "moving": {"u": noise(1), "p": noise(2)}}, ["u", "p"]
    )
    assert Blueprint(job).objective.group_names == ("u", "p")


def test_a_job_with_nothing_to_forecast_is_refused(make: MakeJob) -> None:
    job = make({"data": {"density": np.ones(SHAPE, np.float32)}}, ["density"])
    with pytest.raises(ConfigError, match=r"none of density ever changes"):
        checked(job)


def test_groups_without_samples_are_in_no_loss_and_no_validation(
    make: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 60 to 1 samples `p` alone has, none is validated on, and few batches have one."""
    with caplog.at_level(logging.WARNING):
        job = make(
            {"v": {"u": noise(0)}, "w": {"p": noise(1)}},
            ["u", "p"],
            "data.mixture.0.weight=60",
            "data.mixture.1.weight=1",
            "optimizer.lr=1e-9",
        )
        pretrain.run(job)
    assert "none of the 4 validation samples has p" in caplog.text
    run = RunDirectory.open(job.runs_dir, "run")
    (event,) = [e for e in run.events() if e["kind"] == "validation"]
    assert "validation_group_loss/p" not in event
    assert event["validation_loss"] == event["validation_loss/v"]
    for record in run.metrics():
        own = [record[f"loss/{name}"] for name in ("v", "w") if f"loss/{name}" in record]
        assert record["loss"] == pytest.approx(np.mean(own), rel=1e-6)


def test_a_group_that_one_micro_batch_lacks_has_the_same_gradient(make: MakeJob) -> None:
    """The loss of a batch does not depend on how it is split, whichever part has the group."""
    losses = []
    for micro, name in ((4, "whole"), (1, "split")):
        job = make(
            {f"v-{name}": {"u": noise(0)}, f"w-{name}": {"p": noise(1)}},
            ["u", "p"],
            f"parallel.micro_batch_size={micro}",
            f"name={name}",
        )
        pretrain.run(job)
        losses.append([m["loss"] for m in RunDirectory.open(job.runs_dir, name).metrics()])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=0)


def test_raw_fields_have_no_smallest_size(make: MakeJob) -> None:
    job = make({"data": {"u": 1e-9 * noise(0)}}, ["u"], "data.normalization=none")
    assert Blueprint(job).objective.smallest_label == 0.0  # type: ignore[attr-defined]


def test_a_field_that_no_dataset_has_is_no_reason_to_validate_more(
    make: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    """Fine-tuning keeps the channels of its source, of which the new data may lack some."""
    job = make({"v": {"u": noise(0)}, "w": {"u": noise(1)}}, ["u"])
    wider = job.model_copy(update={"data": job.data.model_copy(update={"fields": ("u", "p")})})
    wider = wider.model_copy(
        update={"data": wider.data.model_copy(update={"normalization": "none"})}
    )
    with caplog.at_level(logging.WARNING):
        checked(wider)
    assert "validation samples" not in caplog.text


def moving_from(first: int, seed: int) -> Values:
    """1 in the trajectories before `first`, noise in those from it on."""
    values = np.ones(SHAPE, np.float32)
    values[first:] = noise(seed)[first:]
    return values


def shifted_from(first: int) -> Values:
    """1 in the trajectories before `first`, 2 in those from it on."""
    return np.where(np.arange(SHAPE[0]) < first, 1.0, 2.0)[:, None, None, None] * np.ones(
        SHAPE, np.float32
    ).astype(np.float32)


def test_a_given_field_that_changes_where_it_is_evaluated_is_told_first(make: MakeJob) -> None:
    """Training: trajectories 0 to 5, validation 6 and 7, test 8 and 9."""
    fields = {
        "u": noise(0),
        "still": np.ones(SHAPE, np.float32),
        "moves": moving_from(9, 1),
        "shifts": shifted_from(8),
    }
    job = make({"data": fields}, list(fields))
    pretrain.run(job)
    console = Console(record=True, width=80)
    wanted = {"run": "run", "runs_dir": job.runs_dir}
    result = evaluate.run(EvaluateJob(**wanted, split="test"), console)
    (told,) = result.metrics["datasets"]
    assert told["groups"] == ["u"]
    counts = {g["name"]: (g["num_changing"], g["num_different"]) for g in told["given_fields"]}
    assert counts == {"still": (0, 0), "moves": (1, 1), "shifts": (0, 2)}
    moves, shifts = told["warnings"]
    assert moves.startswith(
        "moves is 1 everywhere in the training split, but changes from frame to frame in 1 and has "
        "other values in 1 of 2 evaluated trajectories"
    )
    assert "shifts is 1 everywhere in the training split, but has other values in 2 of 2" in shifts
    assert told["notes"][0].startswith(
        "still is 1 everywhere in the training split: the model takes it as an input"
    )
    shown = " ".join(console.export_text().split())
    for sentence in told["warnings"]:
        assert shown.index(sentence) < shown.index("medians over 2")
        assert sentence in result.report.read_text()
    # nothing to warn of where it is as it was in training
    (before,) = evaluate.run(EvaluateJob(**wanted, split="validation"), console).metrics["datasets"]
    assert before["warnings"] == []
    assert len([note for note in before["notes"] if "takes it as an input" in note]) == 3


def test_a_given_field_that_changes_where_it_is_validated_is_said_once(
    make: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"u": noise(0), "still": rounded_constant(), "moves": moving_from(6, 1)}
    job = make({"data": fields}, list(fields))
    with caplog.at_level(logging.WARNING):
        checked(job)
    told = [
        r.getMessage() for r in caplog.records if "changes in split validation" in r.getMessage()
    ]
    assert len(told) == 1
    assert "moves never changes in the training split" in told[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        checked(make({"other": {"u": noise(0), "p": moving_from(8, 1)}}, ["u", "p"]))
    assert "changes in split" not in caplog.text  # only in the test split


def test_a_check_reads_one_validation_sample_of_a_trajectory_and_none_without_need(
    make: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = field_checks.load_batch

    def counted(mixture: Any, samples: Any) -> Any:
        reads.extend(s.trajectory for s in samples)
        return read(mixture, samples)

    monkeypatch.setattr(field_checks, "load_batch", counted)
    checked(make({"plain": {"u": noise(0), "p": noise(1)}}, ["u", "p"]))
    assert reads == []
    still = {"u": noise(0), "p": np.ones(SHAPE, np.float32)}
    checked(make({"still": still}, ["u", "p"], "validation.num_samples=40"))
    assert sorted(reads) == [6, 7]


def test_a_field_that_is_asked_for_is_not_said_to_be_left_out(
    make: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"u": noise(0), "p": np.ones(SHAPE, np.float32)}
    job = make({"data": fields}, ["u", "p"], "objective.config.field_groups={u: [u], p: [p]}")
    with caplog.at_level(logging.WARNING):
        checked(job)
    assert "no loss or error" not in caplog.text
    assert (
        "p is 1 everywhere: it still counts in losses and errors, because objective.config.field_groups"
        in caplog.text
    )
