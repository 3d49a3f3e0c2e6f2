"""Training through the command line when data, architecture or store are not as they should be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]
FAILED, BAD_INPUT, STOPPED = 1, 2, 130
UNTRACKED = "tracking.uri=null"


def pelagos(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[RunDirectory], None]
) -> None:
    """Do something once, right after the step is logged."""
    original = RunDirectory.append_metrics

    def append(run: RunDirectory, record: dict[str, Any]) -> None:
        original(run, record)
        if record["step"] == step:
            action(run)

    monkeypatch.setattr(RunDirectory, "append_metrics", append)


def weights(run: RunDirectory, step: int) -> dict[str, Tensor]:
    return CheckpointStore(run.checkpoint_uri).load_named(step, "")


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def flip_a_bit_in_every_frame(content: bytes) -> bytes:
    changed = bytearray(content)
    # frames are longer than 512 bytes; the index at the end, which is read only once, stays
    for position in range(0, len(changed) - 2048, 512):
        changed[position] ^= 1
    return bytes(changed)


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit_in_every_frame, pytest.param(cut_in_half, marks=pytest.mark.matrix)],
)
def test_damage_met_in_training_fails_by_name_and_can_be_mended(
    make_job: MakeJob,
    datasets: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    make_job("run")
    uri = tmp_path / "copy.zarr"
    shutil.copytree(datasets[1], uri)
    shards = [p for p in (uri / "data" / "c").rglob("*") if p.is_file()]
    whole = {p: p.read_bytes() for p in shards}

    def harm(_: RunDirectory) -> None:
        for path in shards:
            path.write_bytes(damage(whole[path]))

    # no validation: it would open the dataset anew, and find the damage before the stream does
    arguments = [tmp_path / "run.yaml", f"data.mixture=[{{uri: {uri}}}]", UNTRACKED]
    arguments.append("validation.every_steps=1000")
    run = RunDirectory(tmp_path / "runs" / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 4, harm)
        result = pelagos("pretrain", *arguments, "schedule.total_steps=20")
    assert result.exit_code == FAILED, result.output
    assert str(uri) in result.output
    assert re.search(r"trajectory \d+", result.output)
    assert re.search(r"frames? \d+|ends at byte \d+", result.output)
    assert "pelagos resume run" in result.output
    assert run.status()["state"] == "failed"
    saved = [info.step for info in CheckpointStore(run.checkpoint_uri).complete()]
    assert saved
    assert weights(run, saved[-1])  # verified as it is read

    for path, content in whole.items():
        path.write_bytes(content)
    assert pelagos("resume", "run", "--runs-dir", run.path.parent).exit_code == 0
    undisturbed = pelagos("pretrain", *arguments, "schedule.total_steps=20", "name=other")
    assert undisturbed.exit_code == 0
    other = RunDirectory(tmp_path / "runs" / "other")
    assert_same_bits(weights(run, 20), weights(other, 20))


def test_a_checkpoint_of_another_architecture_stops_the_resume(
    make_job: MakeJob, tmp_path: Path
) -> None:
    make_job("run")
    assert pelagos("pretrain", tmp_path / "run.yaml", UNTRACKED).exit_code == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    before = weights(run, 8)
    job = yaml.safe_load((run.path / "job.yaml").read_text())
    job["model"]["config"]["embed_dim"] = 16
    job["schedule"]["total_steps"] = 12
    (run.path / "job.yaml").write_text(yaml.safe_dump(job))
    run.set_status("stopped")
    result = pelagos("resume", "run", "--runs-dir", run.path.parent)
    assert result.exit_code == FAILED, result.output
    assert "holds another architecture" in result.output
    assert re.search(r"\[8.*\] in the checkpoint, \[16.*\] in the model", result.output)
    assert len(run.metrics()) == 8
    assert_same_bits(weights(run, 8), before)


@pytest.mark.s3
def test_training_and_resuming_with_everything_in_an_object_store(
    make_job: MakeJob,
    write_waves: Callable[..., None],
    datasets: tuple[str, str],
    s3_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    make_job("run")
    place = s3_server.new_uri()
    write_waves(f"{place}/ce.zarr", ("density", "velocity-x", "velocity-y", "pressure"), 1)
    job_file = tmp_path / "run.yaml"
    remote = [
        f"data.mixture=[{{uri: '{place}/ce.zarr'}}]",
        f"checkpoint.uri={place}/checkpoints",
        UNTRACKED,
    ]
    with monkeypatch.context() as patch:
        at_step(patch, 4, RunDirectory.request_stop)
        stopped = pelagos("pretrain", job_file, *remote)
    assert stopped.exit_code == STOPPED, stopped.output
    run = RunDirectory(tmp_path / "runs" / "run")
    assert run.checkpoint_uri == f"{place}/checkpoints/run"
    assert not (run.path / "checkpoints").exists()
    resumed = pelagos("resume", "run", "--runs-dir", run.path.parent)
    assert resumed.exit_code == 0, resumed.output
    assert [m["step"] for m in run.metrics()] == list(range(1, 9))

    local = pelagos(
        "pretrain", job_file, f"data.mixture=[{{uri: {datasets[1]}}}]", "name=local", UNTRACKED
    )
    assert local.exit_code == 0, local.output
    assert_same_bits(weights(run, 8), weights(RunDirectory(tmp_path / "runs" / "local"), 8))

    # the same name from another runs_dir would mix two runs' checkpoints
    again = pelagos("pretrain", job_file, *remote, f"runs_dir={tmp_path}/elsewhere")
    assert again.exit_code == 2, again.output
    assert "checkpoint.uri" in again.output
    assert "another run, run in" in again.output
    assert not (tmp_path / "elsewhere").exists()


def test_resume_changes_how_steps_are_computed_but_not_which(
    make_job: MakeJob, tmp_path: Path
) -> None:
    make_job("run")
    assert pelagos("pretrain", tmp_path / "run.yaml", UNTRACKED).exit_code == 0
    run = RunDirectory(tmp_path / "runs" / "run")
    run.set_status("stopped")
    before = {p.name: p.read_bytes() for p in run.path.glob("job*.yaml")}
    refused = pelagos("resume", "run", "seed=1", "optimizer.lr=1", "--runs-dir", run.path.parent)
    assert refused.exit_code == BAD_INPUT
    assert "cannot change optimizer.lr, seed" in " ".join(refused.output.split())
    impossible = pelagos(
        "resume", "run", "parallel.micro_batch_size=3", "--runs-dir", run.path.parent
    )
    assert impossible.exit_code == BAD_INPUT
    assert {p.name: p.read_bytes() for p in run.path.glob("job*.yaml")} == before
    resumed = pelagos(
        "resume", "run", "parallel.strategy=fsdp", "--runs-dir", run.path.parent, "--json"
    )
    assert resumed.exit_code == 0, resumed.output
    assert run.job().parallel.strategy == "fsdp"
    assert (run.path / "job-1.yaml").read_bytes() == before["job.yaml"]


def test_a_resume_whose_data_moved_says_where_to_name_the_new_place(
    make_job: Callable[..., PretrainJob], datasets: tuple[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "here.zarr"
    shutil.copytree(datasets[1], home)
    job = make_job("moved", data__mixture=f"[{{uri: {home}}}]", tracking__uri="null")
    path = tmp_path / "moved-job.yaml"
    path.write_text(resolve_yaml(job))
    runs = ("--runs-dir", str(job.runs_dir))
    assert CliRunner().invoke(app, ["pretrain", str(path)]).exit_code == 0
    home.rename(tmp_path / "there.zarr")
    longer = ["resume", "moved", "--from", "last", "schedule.total_steps=10", *runs]
    refused = CliRunner().invoke(app, longer)
    assert refused.exit_code == 2
    said = " ".join(refused.output.split())
    assert re.search(r"job\.yaml: 1 problem line \d+: data\.mixture\.0\.uri: .*here\.zarr", said), (
        said
    )
    assert "If it moved: data.mixture.0.uri=NEW_PLACE" in said
    done = CliRunner().invoke(app, [*longer, f"data.mixture.0.uri={tmp_path / 'there.zarr'}"])
    assert done.exit_code == 0, done.output
