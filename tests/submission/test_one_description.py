"""A local run and a submitted one are told in the same keys, types and units."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import MLFLOW_STATUS, State

TRAINING = (Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml").read_text()


def write_records(run: RunDirectory) -> None:
    """Two launches: steps 1 to 3 with a checkpoint at 2, then on from there to 4."""
    for time, kind, more in (
        (100.0, "launched", {}),
        (104.0, "checkpoint", {"step": 2, "uri": "s3://bucket/run"}),
        (110.0, "launched", {}),
        (111.0, "resumed", {"step": 2}),
    ):
        with run.events_path.open("a") as file:
            file.write(json.dumps({"time": time, "kind": kind, **more}) + "\n")
    for step, time in ((1, 101.0), (2, 103.0), (3, 112.0), (4, 115.0)):
        record = {"step": step, "time": time, "loss": 1 / step, "step_seconds": 1.0}
        with run.metrics_path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "time": 116.0, "loss": NaN, "step_seconds": 1.0}\n')


@pytest.fixture
def both(tmp_path: Path, clusters: Callable[..., None]) -> dict[str, Any]:
    """What `status --json` says of one run in a directory here, and as a submitted one."""
    job = parse_job(TRAINING.replace("name: quickstart", "name: twin"), "test", ["runs_dir=runs"])
    storage = tmp_path / "storage"
    clusters(here={"kind": "local", "storage": str(storage)})
    record = RunRecord(DirectoryStore(str(storage)), "twin")
    details = {"cluster": "here", "needs": {}, "priority": 2, "retries": 0, "after": []}
    record.claim(resolve_yaml(job), **details)
    for runs_dir in (tmp_path / "runs", storage / "runs"):
        write_records(RunDirectory.create(job.model_copy(update={"runs_dir": str(runs_dir)})))
    return {
        place: json.loads(CliRunner().invoke(app, ["status", "twin", *option, "--json"]).output)
        for place, option in (
            ("local", ("--runs-dir", str(tmp_path / "runs"))),
            ("submitted", ("--cluster", "here")),
        )
    }


def test_both_have_the_same_keys_types_and_units(both: dict[str, Any]) -> None:
    local, submitted = both["local"], both["submitted"]
    assert local.keys() == submitted.keys()
    for key in ("run", "job", "step", "total_steps", "last_checkpoint", "tracking", "metrics"):
        assert local[key] == submitted[key], key
    assert (local["step"], local["last_checkpoint"]) == (5, 2)
    assert local["metrics"]["loss"] is None  # NaN is no JSON
    # five steps of a second, of 104 - 100 and 116 - 110 seconds
    assert local["goodput"] == submitted["goodput"] == pytest.approx(5 / 10)
    assert (local["attempt"], local["restarts"]) == (2, 0)
    assert (submitted["state"], submitted["priority"]) == ("submitted", 2)
    assert (local["cause"], local["cluster"], submitted["directory"]) == (None, None, None)


def test_lists_have_rows_of_the_same_keys(both: dict[str, Any], tmp_path: Path) -> None:
    lists = {
        place: json.loads(CliRunner().invoke(app, ["list", *option, "--json"]).output)
        for place, option in (
            ("local", ("--runs-dir", str(tmp_path / "runs"))),
            ("submitted", ("--cluster", "here")),
        )
    }
    (local,), (submitted,) = lists["local"], lists["submitted"]
    assert local.keys() == submitted.keys()
    assert local.keys() < both["local"].keys()


def test_a_person_is_shown_words(both: dict[str, Any], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["status", "twin", "--runs-dir", str(tmp_path / "runs")])
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert f"step 5 of {both['local']['total_steps']} (0%)" in lines
    assert {"goodput 50.0%", "last checkpoint step 2"} <= set(lines)
    assert any(line.startswith("loss nan") for line in lines)


def test_the_words_for_states_are_one_vocabulary() -> None:
    """No state is compared with, or set to, a word of its own."""
    root = Path(__file__).parents[2] / "src/pelagos"
    words = "|".join(state for state in State)
    literal = re.compile(
        rf'(state|kind)("\)|\b) (==|!=) "({words})"|(Outcome|TrialResult|set_status)\(\s*"({words})"'
    )
    found = [
        f"{path.name}: {match[0]}"
        for room in ("jobs", "platform", "cli")
        for path in (root / room).rglob("*.py")
        for match in literal.finditer(path.read_text())
        if not match[0].startswith("kind == ") or "event" not in path.read_text()
    ]
    assert found == []
    assert set(MLFLOW_STATUS.values()) == {"FINISHED", "KILLED", "FAILED"}
    assert json.dumps({"state": State.STOPPED_EARLY}) == '{"state": "stopped early"}'


def test_a_run_that_is_nowhere_is_said_to_be_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PELAGOS_CLUSTERS", raising=False)
    shown = CliRunner().invoke(app, ["wait", "nowhere"])
    assert shown.exit_code == 2
    assert "run 'nowhere' is not in ./runs, and there is no clusters.yaml" in shown.output
