"""Sweeps on a real Ray cluster: which trials there are, going on, failing alone, what comes out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import save_file
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.evaluation.pages.sweep_page import render
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.jobs import evaluate
from pelagos.jobs import sweep as sweep_job
from pelagos.jobs.sweeping.checks import check_labels
from pelagos.jobs.sweeping.inputs import check_inputs
from pelagos.jobs.sweeping.one_trial import run_trial
from pelagos.jobs.sweeping.trials import (
    TrialResult,
    read_result,
    result_of,
    trials_of,
    write_result,
)
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.models.registry import create_model
from pelagos.platform.config import ConfigError, SweepJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.records.runs import RunDirectory, list_runs

MakeSweep = Callable[..., SweepJob]
# 8 is not divisible by 3 heads: the schema cannot know, the network refuses it
BROKEN_HEADS = [3, 3]
RARE_SAVES = {"checkpoint.every_steps": 30}


@pytest.fixture
def make_sweep(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path: Path,
) -> MakeSweep:
    """A sweep over one tiny job, with all four fields; keyword arguments are its keys."""
    file = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(tiny_job_text(datasets, tmp_path, "tiny"))
    tree["data"]["mixture"] = [{"uri": datasets[1]}]
    tree["schedule"] = {"total_steps": 2}
    tree["validation"] = {"every_steps": 1, "num_samples": 4}
    file.write_text(yaml.safe_dump(tree))

    def make(**keys: Any) -> SweepJob:
        tree: dict[str, Any] = {
            "job": "sweep",
            "name": "tiny",
            "runs_dir": str(tmp_path / "runs"),
            "jobs": {"scratch": {"file": str(file)}},
            "evaluate": None,
            "tracking": {"uri": None},
            **keys,
        }
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
        job = parse_job(yaml.safe_dump(tree), "sweep.yaml")
        assert isinstance(job, SweepJob)
        return job

    return make


def stamps(path: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def records(sweep: SweepJob) -> dict[str, Any]:
    text = (Path(sweep.runs_dir) / sweep.name / "sweep.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.mark.ray
def test_a_grid_runs_fails_alone_and_goes_on_where_it_stopped(make_sweep: MakeSweep) -> None:
    grid = {"optimizer.lr": [0.003, 1.0e-9], "model.config.num_heads": [[2, 2], BROKEN_HEADS]}
    sweep = make_sweep(grid=grid)
    trials = trials_of(sweep)
    names = [t.name for t in trials]
    assert names == [t.name for t in trials_of(sweep)]
    assert len(set(names)) == 4
    first = sweep_job.run(sweep)

    # what the network refuses fails with its cause, the others come to their end
    assert not first.ok
    failed = [t for t in trials if t.overrides["model.config.num_heads"] == BROKEN_HEADS]
    done = [t for t in trials if t not in failed]
    assert {row.name for row in first.report.failures} == {t.name for t in failed}
    assert all("heads" in row.cause for row in first.report.failures)
    assert [read_result(t).state for t in done] == ["finished", "finished"]
    told = records(sweep)["trials"]
    losses = [row["validation_loss"] for row in told[:2]]
    assert losses == sorted(losses)
    assert [row["overrides"]["optimizer.lr"] for row in told[:2]] == [0.003, 1e-9]
    assert told[0]["steps"] == 2
    assert {r.name for r in list_runs(sweep.runs_dir)} == {t.name for t in done}
    assert (first.path.parent / "sweep.png").stat().st_size > 0

    # one is removed: only that one is run again
    shutil.rmtree(done[0].path)
    before = stamps(done[1].path)
    again = sweep_job.run(make_sweep(grid={**grid, "model.config.num_heads": [[2, 2]]}))
    assert again.ok
    assert stamps(done[1].path) == before
    assert read_result(done[0]).validation_loss == first.report.rows[0].validation_loss
    launched = [e for e in RunDirectory(done[1].path).events() if e["kind"] == "launched"]
    assert len(launched) == 1


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One cluster for the sweeps below, which find it running; the test above starts its own."""
    with ray_cluster(None, 2):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_numbers_of_trajectories_give_gains_and_an_interrupted_trial_is_resumed(
    make_sweep: MakeSweep, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    file = str(tmp_path / "tiny.yaml")
    sweep = make_sweep(
        jobs={"slow": {"file": file, "set": {"optimizer.lr": 1e-9}}, "scratch": {"file": file}},
        trajectories=[1, 3],
        baseline="slow",
        evaluate={"max_trajectories": 2},
        tracking={"uri": uri},
    )
    trials = trials_of(sweep)
    killed = trials[0]
    run = RunDirectory.create(killed.job)  # as if killed before its first step
    run.set_status("running")
    assert read_result(killed).state == "lost"
    result = sweep_job.run(sweep)
    assert result.ok, result.report.failures

    for trial in trials:
        streams = Blueprint(RunDirectory(trial.path).job()).streams
        drawn = {s.trajectory for s in streams.sampler.samples(0, 500)}
        assert drawn == set(range(trial.trajectories or 0))
        state = streams.state()["mixture"]["datasets"][0]
        assert state["max_trajectories"] == trial.trajectories
    tables = {t["method"]: t for t in records(sweep)["gains"]}
    assert set(tables) == {"direct", "autoregressive"}
    rows = tables["direct"]["rows"]
    assert [(r["model"], r["num_trajectories"]) for r in rows] == [("scratch", 1), ("scratch", 3)]
    by_key = {(r["label"], r["trajectories"]): r["errors"] for r in records(sweep)["trials"]}
    for row in rows:
        size = row["num_trajectories"]
        expected = by_key["slow", size]["direct"] / by_key["scratch", size]["direct"]
        assert row["accuracy_gain"] == pytest.approx(expected)
    assert "Efficiency gain" in result.path.read_text()

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("pelagos")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in found if r.info.run_name == "tiny"]
    children = {
        r.info.run_name
        for r in found
        if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert children == {t.name for t in trials} - {killed.name}  # that one was begun elsewhere
    assert parent.info.status == "FINISHED"


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_trials_that_lag_are_stopped_early(make_sweep: MakeSweep, tmp_path: Path) -> None:
    entry = {"file": str(tmp_path / "tiny.yaml"), "set": {"schedule.total_steps": 60, **RARE_SAVES}}
    sweep = make_sweep(
        jobs={"scratch": entry},
        grid={"optimizer.lr": [0.01, 1e-9]},
        search={"name": "asha", "grace_validations": 4, "reduction_factor": 2},
        max_concurrent=1,
    )
    result = sweep_job.run(sweep)
    assert result.ok, result.report.failures
    best, stopped = result.report.rows
    assert (best.overrides["optimizer.lr"], best.state, best.steps) == (0.01, "finished", 60)
    assert stopped.state == "stopped early"
    assert 4 <= stopped.steps < 60
    assert sweep_job.run(sweep).report.rows == result.report.rows  # nothing is begun again


def test_another_measurement_is_made_of_the_same_runs(make_sweep: MakeSweep) -> None:
    plain, measured = make_sweep(), make_sweep(evaluate={"max_trajectories": 2})
    (trial,), (same,) = trials_of(plain), trials_of(measured)
    assert trial.path == same.path
    run_trial(plain, trial, lambda *_: True)
    assert [row.state for row in sweep_job.report_of(plain, [trial]).rows] == ["finished"]
    assert [row.state for row in sweep_job.report_of(measured, [trial]).rows] == ["stopped"]
    run_trial(measured, same, lambda *_: True)
    (row,) = sweep_job.report_of(measured, [same]).rows
    assert (row.state, row.errors.keys()) == ("finished", {"direct", "autoregressive"})
    wider = make_sweep(evaluate={"max_trajectories": 3})
    assert sweep_job.report_of(wider, [same]).rows[0].errors == {}
    launched = [e for e in RunDirectory(trial.path).events() if e["kind"] == "launched"]
    assert len(launched) == 1


def test_errors_are_of_the_lead_that_is_asked_for(make_sweep: MakeSweep) -> None:
    last, third = (
        make_sweep(evaluate={"max_trajectories": 2, **k}) for k in ({}, {"lead_steps": 3})
    )
    (trial,) = trials_of(last)
    run_trial(last, trial, lambda *_: True)
    at_last = read_result(trial)
    assert at_last.measured_on == {"split": "test", "max_trajectories": 2}
    assert result_of(third, trial).state == "stopped"  # of other leads: measured anew
    run_trial(third, trial, lambda *_: True)
    at_third = read_result(trial)
    assert (at_third.measured_on or {})["lead_steps"] == 3
    job = EvaluateJob(run=trial.name, runs_dir=third.runs_dir, max_trajectories=2)
    (evaluation,), _ = evaluate.measure(job)
    assert evaluation.lead_steps[2] == 3
    for method in ("direct", "autoregressive"):
        by_lead = evaluation.mean_over_groups(method, "relative_l1")
        assert at_third.errors[method] == pytest.approx(by_lead[2], rel=1e-9)
        assert at_last.errors[method] == pytest.approx(by_lead[-1], rel=1e-9)
        assert at_third.errors[method] != at_last.errors[method]
        vrmse = evaluation.mean_over_groups(method, "vrmse")
        assert at_third.vrmse[method] == pytest.approx(vrmse[2], rel=1e-9)
    for baseline in ("persistence", "mean"):
        for metric, value in at_last.baselines[baseline].items():
            expected = evaluation.mean_over_groups(baseline, metric)[-1]
            assert value == pytest.approx(expected, rel=1e-9)
    assert (at_last.beats, at_last.weights) == ("too few", "model")  # 2 trajectories
    page = render(sweep_job.report_of(third, [trial]), b"")
    assert "relative L1 error at lead 3 of the used frames" in page
    assert f"{at_third.errors['direct']:.2%} / {at_third.vrmse['direct']:.2f}" in page
    assert '<td class="">too few</td>' in page


def test_what_was_measured_survives_its_record_and_old_records_read(make_sweep: MakeSweep) -> None:
    (trial,) = trials_of(make_sweep())
    errors = {"direct": 0.5, "autoregressive": math.inf}
    baselines = {"persistence": {"relative_l1": 0.2, "vrmse": math.inf}}
    result = TrialResult(
        "finished", 2, 0.1, errors, vrmse=errors, baselines=baselines, beats="both"
    )
    write_result(trial, result)
    assert read_result(trial) == result
    record = trial.path / "trial.json"
    told = json.loads(record.read_text(), parse_constant=lambda name: pytest.fail(name))
    new = {"vrmse", "baselines", "beats", "is_worse_than_constant", "weights"}
    record.write_text(json.dumps({k: v for k, v in told.items() if k not in new}))
    assert read_result(trial) == TrialResult("finished", 2, 0.1, errors)


def test_random_draws_are_the_same_every_time(make_sweep: MakeSweep) -> None:
    ranges = {"optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True}}
    sweep = make_sweep(random=ranges, search={"name": "random", "num_samples": 40}, seeds=[0, 1])
    trials = trials_of(sweep)
    assert [t.name for t in trials] == [t.name for t in trials_of(sweep)]
    assert len({t.name for t in trials}) == len(trials) == 80
    drawn = sorted({t.overrides["optimizer.lr"] for t in trials})
    assert len(drawn) == 40
    assert 1e-5 <= drawn[0] < 1e-4 < drawn[20] < 1e-2
    assert all(t.job.optimizer.lr == t.overrides["optimizer.lr"] for t in trials)


def test_another_job_is_another_run(make_sweep: MakeSweep, tmp_path: Path) -> None:
    before = {t.name for t in trials_of(make_sweep())}
    file = tmp_path / "tiny.yaml"
    file.write_text(file.read_text().replace("total_steps: 2", "total_steps: 3"))
    assert before.isdisjoint(t.name for t in trials_of(make_sweep()))


VELOCITY = ["velocity-x", "velocity-y"]
VELOCITY_AND_MORE = ["density", *VELOCITY, "pressure"]


def test_no_two_trials_share_a_name(make_sweep: MakeSweep) -> None:
    """Where the name is cut, or what differs decides no step; the names of others stay."""
    long = "a" * 90
    rhythms = {"checkpoint.every_steps": [10, 20, 30], "optimizer.lr": [0.003, 0.001]}
    for name in ("tiny", long):
        trials = trials_of(make_sweep(name=name, grid=rhythms))
        assert len({t.name for t in trials}) == 6
        assert [t.name for t in trials_of(make_sweep(name=name, grid=rhythms))] == [
            t.name for t in trials
        ]
        assert all(t.job.name == t.name and len(t.name) <= 100 for t in trials)
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0\.001 is the same trial as .*once"):
        trials_of(make_sweep(grid={"optimizer.lr": [0.001, 1.0e-3]}))


def test_gains_of_errors_of_other_fields_are_refused(
    make_sweep: MakeSweep, tmp_path: Path, datasets: tuple[str, str]
) -> None:
    file = str(tmp_path / "tiny.yaml")

    def sweep(**set_: Any) -> SweepJob:
        jobs = {"fno": {"file": file}, "tuned": {"file": file, "set": set_}}
        return make_sweep(jobs=jobs, trajectories=[1, 2], evaluate={"max_trajectories": 2})

    incompressible = {"data.mixture": [{"uri": datasets[0]}], "data.fields": VELOCITY}
    with_constant = {**incompressible, "data.fields": ["density", *VELOCITY]}  # it is not scored
    same = {"fno": {"file": file, "set": incompressible}}
    same["tuned"] = {"file": file, "set": with_constant}
    check_labels(make_sweep(jobs=same, trajectories=[1], evaluate={}), {"fno", "tuned"})
    named = {"flow": ["velocity-y", "velocity-x"], "rho": ["density"], "p": ["pressure"]}
    check_labels(sweep(**{"objective.config.field_groups": named}), {"fno", "tuned"})
    split = {f: [f] for f in VELOCITY_AND_MORE}
    for set_ in ({"data.fields": VELOCITY}, {"objective.config.field_groups": split}):
        other = sweep(**set_)
        for left in ({"fno", "tuned"}, {"fno"}):  # the other label's trials may be over already
            with pytest.raises(ConfigError, match="jobs.tuned: is scored on .*baseline fno on"):
                check_labels(other, left)
        check_labels(other.model_copy(update={"trajectories": ()}), {"fno"})  # no gains asked for


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {"optimizer.lrr": [1]}}, r"grid\.optimizer\.lrr: unknown key; did you mean 'lr'"),
        ({"jobs": {}}, "jobs: .*at least 1"),
        ({"jobs": {"a": {"file": "absent.yaml"}}}, "jobs.a.file: .*absent.yaml.*No such file"),
        ({"trajectories": [0, 1]}, r"trajectories\.0: got 0"),
        ({"trajectories": [4, 64]}, "has 8 trajectories in its split train, .* got 64"),
        ({"search": {"metric": "validation_los"}}, "did you mean 'validation_loss'"),
        ({"search": {"name": "population"}}, "random: is empty, but a population changes"),
        ({"search": {"name": "random"}}, "random: is empty"),
        ({"grid": {"seed": [1, 2]}}, "use its key `seeds`"),
        ({"grid": {"optimizer.lr": [-1]}}, r"grid\.optimizer\.lr: got"),
        ({"grid": {"resources.num_workers": [2]}}, "a trial runs in one process"),
        ({"baseline": "fno"}, "baseline: got 'fno', which is not a label"),
        ({"seeds": [1, 1]}, "repeats a value"),
        ({"evaluate": {"lead_steps": 0}}, r"evaluate\.lead_steps: got 0"),
        ({"evaluate": {"lead_steps": 6}}, r" evaluate\.lead_steps: got 6, .*the last lead is 4"),
        ({"random": {"ema_decay": {"low": 0.9, "high": 0.5}}}, "must be below high"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    make_sweep: MakeSweep, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_job.run(make_sweep(**keys))
    assert not (tmp_path / "runs").exists()


def test_a_changed_number_of_trajectories_is_refused_on_resume(
    make_job: Callable[..., Any],
) -> None:
    state = Blueprint(make_job(data__max_trajectories=3)).streams.state()
    Blueprint(make_job(data__max_trajectories=3)).streams.check_state(state)
    for other in (2, "null"):
        with pytest.raises(ValueError, match="max_trajectories was 3"):
            Blueprint(make_job(data__max_trajectories=other)).streams.check_state(state)
    streams = Blueprint(make_job(data__max_trajectories=1)).streams
    held_out = {int(t) for batch, _ in streams.validation(0, 1) for t in batch.trajectory}
    assert held_out == {8, 9}  # the validation split stays whole


def test_a_dry_run_lists_the_trials(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep(seeds=[0, 1], trajectories=[1, 2])
    file = str(tmp_path / "sweep.yaml")
    answer = CliRunner().invoke(app, ["sweep", file, "seeds=[0]", "--dry-run", "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert (told["num_trials"], told["num_done"]) == (2, 0)
    names = {t.name for t in trials_of(sweep)}
    assert {t["name"] for t in told["trials"]} < names
    assert not Path(sweep.runs_dir).exists()


def test_weights_and_data_that_changed_meanwhile_are_refused(
    make_sweep: MakeSweep, tmp_path: Path, write_waves: Callable[..., None]
) -> None:
    data, fields = str(tmp_path / "own.zarr"), ("density", "velocity-x", "velocity-y", "pressure")
    write_waves(data, fields, 3)
    tree = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    tree["data"]["mixture"] = [{"uri": data}]
    weights = str(tmp_path / "weights.safetensors")
    network = {"name": tree["model"]["name"], "config": tree["model"]["config"]}

    def save_weights(seed: int) -> None:
        torch.manual_seed(seed)
        model = create_model(network["name"], in_channels=4, out_channels=4, **network["config"])
        save_file(model.state_dict(), weights)

    save_weights(0)
    tuned = {**tree, "job": "finetune", "source": {"uri": weights}}
    keys: dict[str, Any] = {"jobs": {"tuned": {"job": tuned}, "scratch": {"job": tree}}}
    sweep = make_sweep(**keys)
    for trial in trials_of(sweep):
        assert run_trial(sweep, trial, lambda *_: True).state == "finished"
    scratch_trial, tuned_trial = sorted(trials_of(sweep), key=lambda trial: trial.label)
    recorded = read_result(tuned_trial).inputs or {}
    assert recorded.keys() == {"source", data}
    assert (read_result(scratch_trial).inputs or {}).keys() == {data}
    check_inputs(sweep, trials_of(sweep))

    save_weights(1)
    more = make_sweep(**keys, seeds=[0, 1])  # finished trials beside new ones
    before = stamps(tmp_path / "runs")
    with pytest.raises(
        ConfigError, match=r"jobs\.tuned: the weights of .*changed since tiny-tuned"
    ):
        sweep_job.run(more)
    assert stamps(tmp_path / "runs") == before
    assert not (tmp_path / "runs/tiny").exists()
    # one that was interrupted would go on from the weights that it began with
    kept = (tuned_trial.path / "trial.json").read_text()
    (tuned_trial.path / "trial.json").unlink()
    with pytest.raises(ConfigError, match=r"another name .*or delete these trials"):
        check_inputs(sweep, trials_of(sweep))
    without = {k: v for k, v in json.loads(kept).items() if k != "inputs"}
    (tuned_trial.path / "trial.json").write_text(json.dumps(without))
    check_inputs(sweep, trials_of(sweep))  # of an earlier version: nothing to hold it against
    (tuned_trial.path / "trial.json").write_text(kept)
    shutil.rmtree(tuned_trial.path)
    check_inputs(more, trials_of(more))

    shutil.rmtree(data)
    check_inputs(sweep, trials_of(sweep))  # what is gone cannot be mixed with anything
    write_waves(data, fields, 4)
    with pytest.raises(
        ConfigError, match=r"jobs\.scratch: dataset .*own\.zarr changed since tiny-"
    ):
        check_inputs(sweep, trials_of(sweep))
