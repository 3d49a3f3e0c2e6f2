"""Bad input through the command line: what is said, the exit status, and that nothing is harmed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.platform.config import PretrainJob

MakeJob = Callable[..., PretrainJob]
BAD_INPUT = 2


def pelagos(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def job_file(make_job: MakeJob, tmp_path: Path) -> Path:
    """A job file that runs as it is."""
    make_job("run")
    return tmp_path / "run.yaml"


def refuse(*arguments: object, intact: Path) -> str:
    """Run a command that must be refused; returns what it said."""
    before = contents(intact)
    result = pelagos(*arguments)
    assert result.exit_code == BAD_INPUT, result.output
    assert contents(intact) == before
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("weight_decay", "wait_decay", "optimizer.wait_decay", "weight_decay"),
        ("total_steps: 8", "total_steps: many", "schedule.total_steps", "many"),
    ],
)
def test_mistakes_in_a_job_file_are_shown_with_line_and_key(
    job_file: Path, tmp_path: Path, old: str, new: str, key: str, words: str
) -> None:
    text = job_file.read_text().replace("  lr: 0.003", "  lr: 0.003\n  weight_decay: 0.1")
    job_file.write_text(text.replace(old, new))
    line = 1 + next(i for i, t in enumerate(job_file.read_text().splitlines()) if new in t)
    said = refuse("pretrain", job_file, intact=tmp_path)
    for part in (str(job_file), f"line {line}: {key}: ", words):
        assert part in said


def test_a_job_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refuse("pretrain", tmp_path / "nowhere.yaml", intact=tmp_path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.mixture=[{uri: /nowhere/a.zarr}]", ["data.mixture", "no dataset at"]),
        ("data.mixture=[{uri: PLAIN}]", ["data.mixture", "PLAIN"]),
        ("data.fields=[temperature]", ["temperature"]),
        ("model.config.image_size=20", ["image_size=20", "multiple of", "= 8"]),
        ("data.global_batch_size=5 resources.num_workers=2", ["5 = 2 x 2 + 1", "4 or 6"]),
        ("runs_dir=FILE", ["runs_dir", "FILE"]),
        ("runs_dir=FILE/below", ["runs_dir", "FILE"]),
        ("runs_dir=/proc/runs", ["runs_dir", "/proc/runs", "choose another"]),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_anything_is_made(
    job_file: Path, tmp_path: Path, override: str, parts: list[str]
) -> None:
    plain, file = tmp_path / "plain", tmp_path / "file"
    plain.mkdir()
    (plain / "notes.txt").write_text("not a dataset")
    file.write_text("in the way")

    def here(text: str) -> str:
        return text.replace("PLAIN", str(plain)).replace("FILE", str(file))

    # overrides with a space in them are one argument, except where two keys are given
    overrides = [override] if "[{" in override else override.split(" ")
    said = refuse("pretrain", job_file, *map(here, overrides), intact=tmp_path)
    for part in parts:
        assert here(part) in said
    assert not (tmp_path / "runs").exists()


def test_a_run_name_is_taken_once(finished: Path) -> None:
    job = finished.parent / "done.yaml"
    said = refuse("pretrain", job, "tracking.uri=null", intact=finished)
    assert "pelagos resume done" in said
    assert "name=OTHER" in said


def test_an_endpoint_that_does_not_answer_is_named_in_bounded_time(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something-secret")
    started = time.monotonic()
    said = refuse(
        "pretrain",
        job_file,
        "data.mixture=[{uri: 's3://bucket/a.zarr'}]",
        "storage.endpoint_url=http://127.0.0.1:9",
        intact=tmp_path,
    )
    assert "endpoint http://127.0.0.1:9" in said
    assert "something-secret" not in said
    # the deadline, counted for each of the few objects asked for; a bound on hanging, not on speed
    assert time.monotonic() - started < 60


@pytest.fixture
def s3_environment(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.mark.s3
@pytest.mark.parametrize("key", ["data.mixture", "checkpoint.uri"])
def test_wrong_credentials_are_refused_before_a_run_is_made(
    s3_environment: Any,
    job_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    uri = s3_environment.new_uri("/somewhere")
    value = f"[{{uri: '{uri}'}}]" if key == "data.mixture" else uri
    said = refuse("pretrain", job_file, f"{key}={value}", "tracking.uri=null", intact=tmp_path)
    for part in ("access refused", s3_environment.endpoint, "AWS_ACCESS_KEY_ID=pela…", key):
        assert part in said
    assert "not-the-secret" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["resume", "dome"], ["no run 'dome'", "known runs: done"]),
        (["status", "dome"], ["no run 'dome'", "known runs: done"]),
        (["evaluate", "dome"], ["no run 'dome'", "known runs: done"]),
        (["evaluate", "done", "split=tost"], ["no split 'tost'", "test"]),
        (["evaluate", "done", "checkpoint=7"], ["checkpoint '7'", "3, 6, 8"]),
        (["evaluate", "done", "wieghts=ema"], ["wieghts"]),
    ],
)
def test_verbs_on_runs_say_what_there_is(
    finished: Path, arguments: list[str], parts: list[str]
) -> None:
    where = f"--runs-dir={finished}"
    said = refuse(*arguments, where, intact=finished)
    for part in parts:
        assert part in said


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = contents(finished)
    result = pelagos("resume", "done", "--runs-dir", finished)
    assert result.exit_code == 0
    assert "finished done at step 8" in result.output
    assert contents(finished) == before


def test_what_programs_read_is_json(finished: Path, tmp_path: Path) -> None:
    (listed,) = json.loads(pelagos("list", "--runs-dir", finished, "--json").output)
    assert (listed["run"], listed["state"], listed["step"]) == ("done", "finished", 8)
    assert json.loads(pelagos("list", "--runs-dir", tmp_path, "--json").output) == []
    status = json.loads(pelagos("status", "done", "--runs-dir", finished, "--json").output)
    assert status["state"] == "finished"
    assert (status["last_checkpoint"], status["step"]) == (8, 8)
    assert {"cause", "attempt", "restarts", "goodput", "directory", "metrics"} <= status.keys()
    assert 0 < status["goodput"] <= 1
    models = json.loads(pelagos("models", "--json").output)
    assert {"name", "family", "parameters", "paper"} <= models[0].keys()
    one = json.loads(pelagos("models", "poseidon-nano", "--json").output)
    shapes = {part["name"]: part["gives"] for part in one["structure"]}
    assert one["inputs"] == [[1, 4, 64, 64], [1]]
    assert shapes["embeddings"] == [[1, 16, 16, 32]]
    assert shapes["patch_recovery"] == [[1, 4, 64, 64]]
    assert one["parameters"] == sum(one["parts"].values())


def test_doctor_exits_by_what_it_found(tmp_path: Path) -> None:
    result = pelagos("doctor", "--json", "--runs-dir", tmp_path)
    checks = json.loads(result.stdout)
    assert {"name", "ok", "seen", "remedy"} <= checks[0].keys()
    assert result.exit_code == (0 if all(c["ok"] for c in checks) else 1)


def test_an_unknown_model_lists_the_closest(tmp_path: Path) -> None:
    assert "poseidon-nano" in refuse("models", "poseidon-nanno", intact=tmp_path)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_verb_has_help_with_an_example_of_itself(path: tuple[str, ...]) -> None:
    result = pelagos(*path, "--help")
    assert result.exit_code == 0
    assert f"Example: pelagos {' '.join(path)}" in result.output


def test_the_job_of_another_verb_is_refused(job_file: Path, tmp_path: Path) -> None:
    job = yaml.safe_load(job_file.read_text())
    assert job["job"] == "pretrain"
    said = refuse("generate", job_file, intact=tmp_path)
    assert f"pelagos pretrain {job_file}" in said
