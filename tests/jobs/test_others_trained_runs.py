"""Runs that somebody else trained, or changed since: evaluated, exported and gone on from, or refused by
name; nothing hangs, nothing is written elsewhere."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.evaluation.pages.sweep_page import SweepReport, SweepRow, write_sweep_report
from pelagos.jobs.sweeping.trials import RECORD_NAME, Trial, read_result, write_result
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.training.take_over import as_recorded
from pelagos.jobs.weights.forecaster import Forecaster, as_arrays
from pelagos.platform.checkpoint.manifest import (
    MANIFEST,
    TRAINER_STATE,
    directory_name,
    manifest_text,
    parse_manifest,
    record_file,
)
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import TAKE_OVERS, RunDirectory, RunError
from pelagos.platform.trainer import train

GONE = object()
NAME = "ns $\\frac$ [red]<script>alert(1)</script>"


@pytest.fixture(scope="module")
def trained(
    tiny_job_text: Callable[[tuple[str, ...], Path, str], str],
    write_waves: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunDirectory:
    """A run of one step on a dataset whose name and fields are hostile."""
    root = tmp_path_factory.mktemp("trained")
    fields = ("u $\\frac$ [/x]", "v")
    write_waves(str(root / f"{NAME.replace('/', '-')}.zarr"), fields, 0)
    (uri,) = map(str, root.glob("*.zarr"))
    told = yaml.safe_load(tiny_job_text((uri,), root, "other"))
    told["data"]["fields"] = list(fields)
    told["tracking"] = {"uri": None}
    told["schedule"] = {"total_steps": 1, "warmup_steps": 0}
    job = parse_job(yaml.safe_dump(told), "other", [])
    assert isinstance(job, PretrainJob)
    run = RunDirectory.create(job)
    train(job, run, build_parts, {})
    return run


@pytest.fixture
def checkpoint(trained: RunDirectory) -> Path:
    """The run's checkpoint; restored afterwards."""
    path = trained.path / "checkpoints" / directory_name(1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    yield path  # type: ignore[misc]
    for file in path.iterdir():
        file.unlink()
    for name, content in before.items():
        (path / name).write_bytes(content)


def pelagos(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def change_state(checkpoint: Path, key: str, value: object) -> None:
    """Change the trainer's JSON, and the checksum in the manifest: who writes one writes both."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text())
    *parents, last = key.split(".")
    inner = state
    for part in parents:
        inner = inner[int(part) if part.isdigit() else part]
    if value is GONE:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    (checkpoint / TRAINER_STATE).write_text(json.dumps(state))
    manifest = parse_manifest((checkpoint / MANIFEST).read_text(), "")
    files = tuple(record_file(checkpoint / file.name) for file in manifest.files)
    (checkpoint / MANIFEST).write_text(manifest_text(dataclasses.replace(manifest, files=files)))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("forecaster", [], "trainer.json does not come from a training: forecaster"),
        ("forecaster", GONE, "does not describe a trained network"),
        ("forecaster.model.config.depths.0", 10**9, "far more than the weights have"),
        ("forecaster.model.config.skip_connections.0", 10**9, "far more than the weights have"),
        ("forecaster.model.config.embed_dim", 10**9, "cannot build|do not fit"),
        ("forecaster.model.config", {}, "far more|do not fit"),
        ("forecaster.model.config.image_size", 10**6, "that one piece may take here"),
        ("forecaster.objective.time_scale", "soon", "cannot build objective 'all2all'"),
        ("forecaster.fields", ["v"], "no normalization of its fields|objective"),
        ("forecaster.absent_value", {}, "absent_value"),
        ("forecaster.normalization", None, "no normalization of its fields"),
        ("forecaster.normalization.std", [1.0], "2 fields, 2 means and 1 standard"),
        ("forecaster.datasets.0.uri", GONE, "no address of its datasets"),
        ("forecaster.datasets.0.offset", {"v": "x"}, "datasets.0.offset.v"),
        ("forecaster.masks", {"v": 5}, "masks.v"),
    ],
)
def test_what_a_checkpoint_says_of_its_network_is_checked(
    trained: RunDirectory, checkpoint: Path, key: str, value: object, told: str
) -> None:
    change_state(checkpoint, key, value)
    done = pelagos("evaluate", "other", f"--runs-dir={trained.path.parent}", "physics=false")
    assert done.exit_code == 2
    text = " ".join(done.output.split())
    assert any(part in text for part in told.split("|")) or pytest.fail(text)


@pytest.mark.parametrize("key", ["depths", "skip_connections"])
def test_nothing_endless_is_built_for_an_export(
    trained: RunDirectory, checkpoint: Path, tmp_path: Path, key: str
) -> None:
    change_state(checkpoint, f"forecaster.model.config.{key}.0", 10**9)
    target = tmp_path / "exported"
    done = pelagos("export", "other", str(target), "--runs-dir", str(trained.path.parent))
    assert done.exit_code == 2
    assert not target.exists()


@pytest.mark.parametrize("best", ["first", 3, [], {}, {"step": "x"}, True])
def test_the_best_checkpoint_is_a_step_or_none(
    trained: RunDirectory, checkpoint: Path, best: object
) -> None:
    change_state(checkpoint, "best", best)
    done = pelagos("evaluate", "other@best", f"--runs-dir={trained.path.parent}")
    assert done.exit_code == 2
    assert "trainer.json does not come from a training: best" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("streams", GONE, "does not record which samples were used"),
        ("streams", 5, "streams"),
        ("streams.mixture", {}, "streams.mixture.fields"),
        ("streams.mixture.datasets", GONE, "the data changed"),
        ("streams.mixture.datasets", "x", "streams.mixture.datasets"),
        ("streams.mixture.datasets.0", None, "streams.mixture.datasets.0"),
        ("streams.seed", GONE, "streams.seed"),
        ("best", 5, "best"),
        ("run", [], "run"),
    ],
)
def test_a_run_does_not_go_on_from_a_state_that_is_none(
    trained: RunDirectory, tmp_path: Path, key: str, value: object, told: str
) -> None:
    run = tmp_path / "runs" / "other"
    shutil.copytree(trained.path, run)
    change_state(run / "checkpoints" / directory_name(1), key, value)
    runs = str(run.parent)
    done = pelagos(
        "resume", "other", "--runs-dir", runs, "--from", "last", "schedule.total_steps=2"
    )
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


@pytest.mark.parametrize("name", [TRAINER_STATE, MANIFEST, ".metadata", "__0_0.distcp"])
def test_a_pipe_in_a_checkpoint_is_named(
    trained: RunDirectory, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    if name == ".metadata":  # or its checksum tells before it is opened
        manifest = parse_manifest((checkpoint / MANIFEST).read_text(), "")
        kept = tuple(file for file in manifest.files if file.name != name)
        (checkpoint / MANIFEST).write_text(manifest_text(dataclasses.replace(manifest, files=kept)))
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    runs = str(trained.path.parent)
    for verb in (
        ["evaluate", "other", f"--runs-dir={runs}"],
        ["export", "other", str(tmp_path / "exported"), "--runs-dir", runs],
        ["checkpoint", "verify", "other", "--runs-dir", runs],
        ["checkpoint", "inspect", "other", "--runs-dir", runs],
    ):
        done = pelagos(*verb)
        if verb[1] != "inspect" or name != "__0_0.distcp":  # which reads no tensor
            assert done.exit_code != 0
            assert "is not a regular file" in " ".join(done.output.split()), verb


def test_names_of_fields_and_datasets_are_text_in_pages_and_figures(
    trained: RunDirectory, tmp_path: Path
) -> None:
    """Matplotlib took what stood between two `$` for a formula, and failed where it was none."""
    output = tmp_path / "report"
    done = pelagos("evaluate", "other", f"--runs-dir={trained.path.parent}", f"output_dir={output}")
    assert done.exit_code == 0, done.output
    page = (output / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "[red]" in done.output
    assert all(path.parent == output / "figures" for path in output.rglob("*.png"))


@pytest.mark.parametrize("link", ["evaluation", "evaluation/test", "evaluation/test/figures"])
def test_a_report_is_written_into_the_run_alone(
    trained: RunDirectory, tmp_path: Path, link: str
) -> None:
    place = trained.path / link
    place.parent.mkdir(parents=True, exist_ok=True)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "metrics.json").write_text("mine")
    place.symlink_to(victim)
    try:
        done = pelagos("evaluate", "other", f"--runs-dir={trained.path.parent}")
    finally:
        place.unlink()
    assert done.exit_code == 2
    assert "leads out of" in done.output
    assert [path.name for path in victim.iterdir()] == ["metrics.json"]
    assert (victim / "metrics.json").read_text() == "mine"


def test_a_record_of_a_take_over_by_somebody_else_redirects_no_secret(
    make_job: Callable[..., PretrainJob], become_anothers: Callable[[], None]
) -> None:
    """What take-overs.json says became the user's own job.yaml."""
    run = RunDirectory.create(make_job(tracking__uri="null"))
    record = {"step": 1, "source": "a", "checkpoint": "b"}
    changes = {"tracking.uri": [None, "https://evil.example"], "optimizer.lr": [0.1, 0.2]}
    run.replace(TAKE_OVERS, json.dumps([{**record, "settings": changes}]))
    (told,) = run.take_overs()
    assert as_recorded(run, told).tracking.uri == "https://evil.example"  # the user's own file
    become_anothers()
    with pytest.raises(
        RunError, match=r"belongs to another user. Its files in .* set tracking.uri=https://evil"
    ):
        as_recorded(run, told)
    assert (
        as_recorded(run, {**record, "settings": {"optimizer.lr": [0.1, 0.2]}}).tracking.uri is None
    )


@pytest.mark.parametrize(
    "told",
    [5, [5], [{}], [{"step": 1, "source": "a", "checkpoint": "b", "settings": {"a": 5}}]],
)
def test_malformed_take_overs_are_named(make_job: Callable[..., PretrainJob], told: object) -> None:
    run = RunDirectory.create(make_job())
    run.replace(TAKE_OVERS, json.dumps(told))
    with pytest.raises(RunError, match="not a list of take-overs"):
        run.take_overs()


@pytest.mark.parametrize(
    "change",
    [
        *({"state": value} for value in ([], "[red]won[/red]", 5)),
        *({"errors": value} for value in (5, {"direct": "x"}, {"direct": [1e9]}, [1])),
        *({"validation_loss": value} for value in ("x", [1.0])),
        *({"unscored": value} for value in (5, [5])),
        {"cause": "\ud800"},
        *({"steps": "x"}, {"baselines": {"mean": 5}}, {"cause": {}}, {"inputs": [1]}),
    ],
)
def test_a_malformed_result_of_a_trial_is_as_if_it_were_absent(
    make_job: Callable[..., PretrainJob], tmp_path: Path, change: dict[str, Any]
) -> None:
    job = make_job("trial")
    trial = Trial("trial", "label", {}, 0, None, job)
    good = {"state": "finished", "steps": 3, "validation_loss": 0.5, "errors": {"direct": 0.1}}
    trial.path.mkdir(parents=True)
    (trial.path / RECORD_NAME).write_text(json.dumps(good))
    assert read_result(trial).state == "finished"
    (trial.path / RECORD_NAME).write_text(json.dumps({**good, **change}))
    assert read_result(trial).state == "waiting"


def test_results_of_a_trial_are_not_written_over_a_link(
    make_job: Callable[..., PretrainJob], tmp_path: Path
) -> None:
    job = make_job("trial")
    trial = Trial("trial", "label", {}, 0, None, job)
    trial.path.parent.mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    trial.path.symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="leads out of"):
        write_result(trial, read_result(trial))
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_sweep_of_hostile_names_is_drawn_and_escaped(tmp_path: Path) -> None:
    settings = {"optimizer.lr $\\frac$": "</td><script>alert(1)</script>"}
    rows = [
        SweepRow("a" * 9000, NAME, settings, seed, None, "finished", 3, 0.5 + seed, cause=NAME)
        for seed in range(2)
    ]
    page = write_sweep_report(SweepReport(NAME, rows, None), tmp_path).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"fields": 5, "lead_time": 5},
        {"fields": [[1], [2, 3]], "lead_time": [1]},
        {"fields": [[["x"]]], "lead_time": [1]},
        {"fields": [[[[0.0] * 16] * 16]], "lead_time": [1]},
        {"fields": [[[[0.0] * 16] * 16] * 2], "lead_time": []},
        {"fields": [[[[0.0] * 3] * 5] * 2], "lead_time": [1]},
    ],
)
def test_a_request_to_a_served_model_is_checked(
    trained: RunDirectory, request_: dict[str, Any]
) -> None:
    forecaster, _ = Forecaster.from_run(trained)

    def answer() -> torch.Tensor:
        fields, lead_time = as_arrays(request_)
        return forecaster.predict(torch.from_numpy(fields), torch.from_numpy(lead_time))

    with pytest.raises(ValueError, match="."):  # of whichever part
        answer()
