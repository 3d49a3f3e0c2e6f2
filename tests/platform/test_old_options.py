"""Options of objectives in the old spelling, next to the objective's name: read as what they are now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import pretrain
from pelagos.jobs import resume as resume_job
from pelagos.jobs.submission.placing import cluster_defaults
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.networks import build_objective
from pelagos.models.objectives import OBJECTIVES, options_of
from pelagos.platform.config import ConfigError, PretrainJob, SweepJob
from pelagos.platform.config.clusters import parse_clusters
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.old_options import OLD_OPTIONS
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
# As versions before wrote resolved jobs: every key, whoever gave it.
RESOLVED = {
    "name": "all2all",
    "config": {},
    **OLD_OPTIONS,
    "time_scale": 0.2,
    "max_lead_steps": 3,
    "field_weights": {"density": 2.0},
}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "objective.config" in r.getMessage()]


def test_options_in_the_old_spelling_are_those_of_the_new_and_warned_of_once(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = make_job("j", objective="{name: all2all, config: {time_scale: 0.2, frame_stride: 2}}")
    assert not warnings_of(caplog)
    tree = yaml.safe_load((tmp_path / "j.yaml").read_text())
    tree["objective"] = {"name": "all2all", "time_scale": 0.2, "max_lead_steps": 3}
    overrides = ["objective.frame_stride=2", "objective.max_lead_steps=null"]
    for _ in range(2):
        assert parse_job(yaml.safe_dump(tree), str(tmp_path / "old.yaml"), overrides) == new
    (told,) = warnings_of(caplog)
    assert str(tmp_path / "old.yaml") in told
    for name in ("time_scale", "max_lead_steps", "frame_stride"):
        assert f"objective.config.{name}" in told


@pytest.mark.parametrize(
    ("overrides", "config"),
    [
        (["objective.loss=vrmse"], {"time_scale": 0.2, "loss": "vrmse"}),
        (["objective.field_weights.p=3"], {"time_scale": 0.2, "field_weights": {"p": 3}}),
        (["objective.time_scale=1"], {}),  # what it was if nothing was said
        (["objective.config.time_scale=1"], {"time_scale": 1}),
        (["objective.time_scale=2", "objective.config.time_scale=3"], {"time_scale": 3}),
        (["objective.config.time_scale=3", "objective.time_scale=2"], {"time_scale": 2}),
        (["objective={name: all2all, time_scale: 2}"], {"time_scale": 2}),
        (["objective={name: all2all, time_scale: 2}", "objective.time_scale=3"], {"time_scale": 3}),
    ],
)
def test_the_last_of_several_overrides_counts_in_both_spellings(
    make_job: MakeJob, tmp_path: Path, overrides: list[str], config: dict[str, Any]
) -> None:
    make_job("j")
    job = parse_job((tmp_path / "j.yaml").read_text(), "j", overrides)
    assert isinstance(job, PretrainJob)
    assert job.objective.config == config


def test_an_option_in_both_spellings_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    make_job("j")
    tree = yaml.safe_load((tmp_path / "j.yaml").read_text())
    tree["objective"]["time_scale"] = 3
    with pytest.raises(ConfigError, match=r"line \d+: objective.time_scale: is also given"):
        parse_job(yaml.safe_dump(tree), "j")


def test_a_run_of_an_earlier_version_resumes_as_it_was(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    config = "{time_scale: 0.2, max_lead_steps: 3, field_weights: {density: 2.0}}"
    job = make_job("r", objective=f"{{name: all2all, config: {config}}}", tracking__uri="null")
    pretrain.run(job, until_step=3)
    run = RunDirectory.open(job.runs_dir, "r")
    tree = yaml.safe_load((run.path / "job.yaml").read_text())
    tree["objective"] = dict(RESOLVED)
    run.replace("job.yaml", yaml.safe_dump(tree))
    assert run.job() == job
    result = resume_job.resume(job.runs_dir, "r", overrides=["data.num_threads=1"])
    assert result.outcome.kind == "finished"
    (changed,) = [event for event in run.events() if event["kind"] == "job_changed"]
    assert changed["keys"] == ["data.num_threads"]
    assert not warnings_of(caplog)  # nobody wrote that file


def test_trials_of_a_sweep_are_the_same_in_both_spellings(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_job("tiny")
    new = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    old = {**new, "objective": {"name": "all2all", "time_scale": 0.2, "loss_scope": "global"}}

    def names(tree: dict[str, Any], prefix: str) -> list[tuple[str, PretrainJob]]:
        entry = {"job": tree, "set": {f"{prefix}max_lead_steps": 3}}
        keys = {f"{prefix}frame_stride": [1, 2], "optimizer.lr": [0.1, 0.2]}
        weights = {f"{prefix}field_weights.density": {"low": 0.5, "high": 2.0}}
        sweep = {"job": "sweep", "name": "s", "jobs": {"a": entry}, "grid": keys, "random": weights}
        sweep |= {"search": {"name": "population", "num_samples": 2}}
        job = parse_job(yaml.safe_dump(sweep), f"sweep{prefix}")
        assert isinstance(job, SweepJob)
        return [(trial.name, trial.job) for trial in trials_of(job)]  # type: ignore[misc]

    found = names(new, "objective.config.")
    assert not warnings_of(caplog)
    assert names(old, "objective.") == found
    assert len(dict(found)) == 8
    # one for the sweep's own keys, one for the job in it, however many trials there are
    assert len(warnings_of(caplog)) == 2


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{name: all2all, config: {time_scael: 2}}", "objective.config.time_scael: .*'time_scale'"),
        ("{name: all2all, config: {time_scale: soon}}", "objective.config.time_scale: got 'soon'"),
        ("{name: all2all, config: {time_scale: -1}}", "objective.config: .*must be positive"),
        ("{name: all2all, config: {loss_scope: locl}}", "loss_scope: .*'global' or 'micro_batch'"),
        ("{name: all2all, config: {masks: {a: b}}}", "objective.config.masks: unknown key"),
        ("{name: all2all, config: {fields: [a]}}", "objective.config.fields: unknown key"),
        ("{name: all2all, config: {field_groups: {a: [b]}}}", "field_groups: names b, not in"),
        ("{name: all2all, config: {field_groups: {a: [0]}}}", "field_groups: names 0, not in"),
        ("{name: autoregressive, config: {noise_scale: -1}}", "noise_scale=-1.* not be negative"),
        ("{name: masked, config: {patch_size: 0}}", "patch_size=0 must be at least 1"),
        ("{name: masked, config: {patch_size: [2, a]}}", "objective.config.patch_size"),
        ("{name: classification, config: {label_smoothing: 2}}", "label_smoothing=2.*from 0 to 1"),
        ("{name: classification, config: {num_classes: 1}}", "num_classes=1 must be at least 2"),
        ("{name: all2al}", "objective.name: .*closest: all2all"),
    ],
)
def test_what_is_no_option_is_refused(make_job: MakeJob, objective: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(make_job(objective=objective))


def test_null_is_the_objectives_own_default(make_job: MakeJob) -> None:
    job = make_job(objective="{name: autoregressive, config: {num_unrolled_steps: null}}")
    objective: Any = build_objective(job)
    assert objective.num_unrolled_steps == 1


@pytest.mark.parametrize(
    ("objective", "wrong", "message"),
    [
        (
            {"name": "all2all", "config": {"frame_stride": 1, "time_scael": 2}},
            "time_scael: 2",
            "objective.config.time_scael: unknown key; did you mean 'time_scale'",
        ),
        (
            {"frame_stride": 2, "loss_scope": "locl", "name": "all2all"},
            "loss_scope: locl",
            "objective.config.loss_scope: got 'locl'",
        ),
    ],
)
def test_the_command_line_names_file_and_line(
    make_job: MakeJob, tmp_path: Path, objective: dict[str, Any], wrong: str, message: str
) -> None:
    make_job("j")
    path = tmp_path / "wrong.yaml"
    tree = yaml.safe_load((tmp_path / "j.yaml").read_text())
    path.write_text(yaml.safe_dump({**tree, "objective": objective}))
    lines = [line.strip() for line in path.read_text().splitlines()]
    result = CliRunner().invoke(app, ["pretrain", str(path), "--dry-run"])
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert f"{path}: 1 problem line {1 + lines.index(wrong)}: {message}" in told


def test_a_clusters_defaults_give_way_to_the_file_in_both_spellings(
    make_job: MakeJob, tmp_path: Path
) -> None:
    defaults = {"objective.time_scale": 5.0, "objective.config.loss": "vrmse"}
    tree = {"kind": "ray", "storage": str(tmp_path), "defaults": defaults}
    text = yaml.safe_dump({"clusters": {"here": {**tree, "address": "http://127.0.0.1:8265"}}})
    config = parse_clusters(text, "clusters.yaml")["here"]
    make_job("new")  # gives time_scale
    assert cluster_defaults(str(tmp_path / "new.yaml"), config) == {
        "objective.config.loss": "vrmse"
    }
    old = yaml.safe_load((tmp_path / "new.yaml").read_text())
    old["objective"] = {"name": "all2all", "loss": "ratio"}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert cluster_defaults(str(tmp_path / "old.yaml"), config) == {"objective.time_scale": 5.0}


def test_the_documentation_lists_every_option_with_its_default() -> None:
    of_fields = ("all2all", "next_step", "steady", "autoregressive")
    groups = {"all": tuple(OBJECTIVES), "of fields": of_fields}
    table = (
        DOCS.read_text(encoding="utf-8")
        .partition("| option | objectives |")[2]
        .partition("\n\n")[0]
    )
    listed: dict[tuple[str, str], str] = {}
    for row in table.splitlines()[2:]:
        option, names, default = (cell.strip() for cell in row.split("|")[1:4])
        for name in groups.get(names, tuple(names.split(", "))):
            listed[name, option.strip("`")] = default
    shipped = [name for name in OBJECTIVES if OBJECTIVES.origin(name) == "pelagos"]
    expected = {(n, key): f.default for n in shipped for key, f in options_of(n).items()}
    assert {place for place in listed if place[0] in shipped} == expected.keys()
    for place, default in expected.items():
        shown = yaml.safe_dump(default).removesuffix("...\n").strip()
        assert f"`{shown}`" in listed[place], place


@pytest.mark.parametrize("key", ["frame_strid", "max_lead"])
def test_a_misspelt_option_is_answered_with_where_it_is_now(make_job: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective.{key}: .* did you mean 'config.{key}"):
        make_job(**{f"objective__{key}": 1})
