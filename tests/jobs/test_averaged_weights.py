"""Runs that keep an average of their weights use it everywhere, and say so; `best` is the best, and
a run's checkpoints are its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import evaluate, export, pretrain
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.networks import build_model
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.sources import open_source
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.checkpoint import store as store_module
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob
from pelagos.platform.config.finetune import SourceConfig
from pelagos.platform.config.schema import ModelConfig, StorageConfig
from pelagos.platform.records.runs import RunDirectory, RunError

MakeJob = Callable[..., PretrainJob]
QUIET = Console(quiet=True)


def validated_by_hand(job: PretrainJob, weights: dict[str, torch.Tensor]) -> float:
    """The validation loss of given weights: sums in numpy, one ratio per group, their mean."""
    streams = Blueprint(job).streams
    blueprint = Blueprint(job)
    model = build_model(job, blueprint.bare_objective)
    objective = blueprint.objective
    model.load_state_dict(weights)
    model.eval()
    errors, magnitudes = [], []
    with torch.no_grad():
        for batch, count in streams.validation(0, 1):
            errors.append(objective.errors(model, batch)[:count].double().numpy())
            magnitudes.append(objective.magnitudes(batch)[:count].double().numpy())
    return float(np.mean(np.concatenate(errors).sum(0) / np.concatenate(magnitudes).sum(0)))


def test_one_choice_of_weights_everywhere(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(ema_decay=0.9, checkpoint__every_steps=4, optimizer__lr=0.01)
    console = Console(record=True, width=120)
    pretrain.run(job, console)
    assert "(averaged weights)" in console.export_text()
    run = RunDirectory.open(job.runs_dir, job.name)
    store = CheckpointStore(run.checkpoint_uri)
    model = {n.removeprefix("model."): t for n, t in store.load_named(8, "model.").items()}
    ema = model | {n.removeprefix("ema."): t for n, t in store.load_named(8, "ema.").items()}
    # what training validates, and ranks `best` by
    events = {e["step"]: e for e in run.events() if e["kind"] == "validation"}
    expected = validated_by_hand(job, ema)
    assert events[8]["validation_loss"] == pytest.approx(expected, rel=1e-6)
    assert validated_by_hand(job, model) != pytest.approx(expected, rel=1e-4)
    assert events[8]["weights"] == "ema"
    # what forecasts, evaluates, is exported, and is fine-tuned
    verified: list[str] = []
    verify = store_module.damaged_files
    with monkeypatch.context() as patch:
        patch.setattr(
            store_module, "damaged_files", lambda *a: (verified.append(str(a[0])), verify(*a))[1]
        )
        usual, _ = Forecaster.from_run(run)
    assert len(verified) == 1  # the whole checkpoint is fetched and read for each
    raw, _ = Forecaster.from_run(run, weights="model")
    assert (usual.weights, raw.weights) == ("ema", "model")
    for name, tensor in usual.model.state_dict().items():
        assert torch.equal(tensor, ema[name]), name
    common = {"run": job.name, "runs_dir": job.runs_dir, "tracking": False}
    scores = []
    for weights in ({}, {"weights": "ema"}, {"weights": "model"}):
        output = str(tmp_path / f"report-{len(scores)}")
        told = Console(record=True, width=200)
        result = evaluate.run(EvaluateJob(**common, **weights, output_dir=output), told)  # type: ignore[arg-type]
        scores.append(result.metrics["datasets"])
        shown = Path(result.report).read_text()
        assert ("averaged weights" in shown) == (weights != {"weights": "model"})
        is_said = "averaged weights (ema_decay)" in told.export_text()
        assert is_said == (weights != {"weights": "model"})
    assert scores[0] == scores[1] != scores[2]
    where = ("--runs-dir", job.runs_dir)
    for weights in ("model", "auto"):
        arguments = ["export", job.name, str(tmp_path / "exported"), *where, "--overwrite"]
        exported = CliRunner().invoke(app, [*arguments, "--weights", weights])
        assert exported.exit_code == 0, exported.output
        assert ("averaged weights (ema_decay)" in exported.output) == (weights == "auto")
    described = json.loads((tmp_path / "exported/forecaster.json").read_text())
    assert described["weights"] == "ema"
    assert len({p.stat().st_mode for p in (tmp_path / "exported").iterdir()}) == 1
    for place in (SourceConfig(run=job.name), SourceConfig(uri=str(tmp_path / "exported"))):
        source = open_source(place, ModelConfig(name="source"), job.runs_dir, StorageConfig(), "")
        assert "averaged weights" in source.name
        assert source.lineage["weights"] == "ema"
        assert all(torch.equal(source.tensors[name], ema[name]) for name in ema)


def test_best_is_never_another_checkpoint(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(checkpoint__every_steps=3, validation__every_steps=5, schedule__total_steps=20)
    pretrain.run(job, QUIET, until_step=4)  # saved at 3 and 4, validated at neither
    run = RunDirectory.open(job.runs_dir, job.name)
    common = {"run": job.name, "runs_dir": job.runs_dir, "checkpoint": "best"}
    for use in (
        lambda: Forecaster.from_run(run, "best"),
        lambda: evaluate.run(EvaluateJob(**common)),  # type: ignore[arg-type]
        lambda: export.run(job.name, tmp_path / "x", checkpoint="best", runs_dir=job.runs_dir),
        lambda: open_source(
            SourceConfig(run=job.name, checkpoint="best"),
            ModelConfig(name="source"),
            job.runs_dir,
            StorageConfig(),
            "",
        ),
    ):
        with pytest.raises(CheckpointError, match=r"no best checkpoint.*take last or one of 3, 4"):
            use()
    pretrain.resume(job.runs_dir, job.name, QUIET, until_step=15)
    assert Forecaster.from_run(run, "best")[1] == 15
    shutil.rmtree(f"{run.checkpoint_uri}/step-00000015")
    with pytest.raises(CheckpointError, match="no best checkpoint|was not kept"):
        Forecaster.from_run(run, "best")


def test_two_runs_never_share_checkpoints(make_job: MakeJob, tmp_path: Path) -> None:
    """The same name and checkpoint.uri below two directories of runs, as two users have them."""
    shared = {"checkpoint__uri": str(tmp_path / "bucket"), "tracking__uri": "null"}
    mine = make_job(runs_dir=str(tmp_path / "me"), **shared)
    other = make_job(runs_dir=str(tmp_path / "colleague"), **shared)
    RunDirectory.create(mine)  # killed before it claimed the place
    pretrain.run(other, QUIET, until_step=3)
    with pytest.raises(RunError, match="another run, run in .*colleague/run, keeps its"):
        pretrain.resume(mine.runs_dir, mine.name, QUIET)
    with pytest.raises(ConfigError, match=r"checkpoint\.uri.*colleague"):
        pretrain.run(make_job(runs_dir=str(tmp_path / "third"), **shared), QUIET)
    assert not (tmp_path / "third").exists()
    # without the claim, the checkpoint itself says whose it is
    (tmp_path / "bucket/run/owner.json").unlink()
    with pytest.raises(RunError, match="of step 3 belongs to another run"):
        Forecaster.from_run(RunDirectory(tmp_path / "me/run"))
    result = pretrain.resume(mine.runs_dir, mine.name, QUIET)
    assert result.outcome.kind == "failed"
    assert "step 3 belongs to another run" in result.outcome.cause
    (tmp_path / "bucket/run/owner.json").unlink()
    finished = pretrain.resume(other.runs_dir, other.name, QUIET)
    assert finished.outcome.kind == "finished"


def test_a_run_of_before_identities_resumes(make_job: MakeJob) -> None:
    job = make_job(tracking__uri="null")
    pretrain.run(job, QUIET, until_step=3)
    run = RunDirectory.open(job.runs_dir, job.name)
    run.path.joinpath("identity.json").unlink()
    with pytest.raises(RunError, match="another run"):
        Forecaster.from_run(run)  # its checkpoint has an identity, so the run had one
