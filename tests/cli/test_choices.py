"""One spelling for each choice on the command line; earlier ones work with a note."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.platform.records.runs import RunDirectory

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart/generate.yaml")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def resolved(*arguments: Any) -> dict[str, Any]:
    result = call(*arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def verbs(command: Any, name: str = "pelagos") -> Any:
    if hasattr(command, "commands"):
        for child, found in command.commands.items():
            yield from verbs(found, f"{name} {child}")
    else:
        yield name, command


def test_every_verb_spells_its_choices_alike() -> None:
    """No verb has another spelling that it shows."""
    foreign = {"--num-workers", "--checkpoint", "--out", "--output-dir", "--runs_dir"}
    for name, command in verbs(get_command(app)):
        for option in command.params:
            if not getattr(option, "hidden", False):
                assert not foreign & {*option.opts}, name


@pytest.mark.parametrize("spelling", [("--workers", 3), ("resources.num_workers=3",)])
def test_workers_of_a_job(spelling: tuple[Any, ...]) -> None:
    result = call("generate", QUICKSTART, *spelling, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "num_workers: 3" in result.output
    is_old = len(spelling) == 1
    assert ("note: resources.num_workers=3 is now written --workers 3" in result.stderr) == is_old


def test_a_checkpoint_is_named_behind_an_at(finished: Path, tmp_path: Path) -> None:
    run = RunDirectory.open(str(finished), "done")
    saved = [e["step"] for e in run.events() if e["kind"] == "checkpoint"]
    written = tmp_path / "models"
    at = call("export", f"done@{saved[0]}", written / "at", "--runs-dir", finished, "--json")
    assert at.exit_code == 0, at.output
    old = call(
        *("export", "done", written / "old", "--checkpoint", saved[0]),
        *("--runs-dir", finished, "--json"),
    )
    assert old.exit_code == 0, old.output
    assert f"--checkpoint {saved[0]} is now written done@{saved[0]}" in old.stderr
    weights = "model.safetensors"
    assert (written / "at" / weights).read_bytes() == (written / "old" / weights).read_bytes()
    last = call("export", "done", written / "last", "--runs-dir", finished, "--json")
    assert last.exit_code == 0, last.output
    if saved[0] != saved[-1]:
        assert (written / "at" / weights).read_bytes() != (written / "last" / weights).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("done@7",), "expected last, best or one of"),
        (("done@",), "expected a checkpoint behind the @"),
        (("done@best", "--checkpoint", "last"), "both name a checkpoint"),
    ],
)
def test_checkpoints_that_there_are_not(
    finished: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    run, *more = arguments
    result = call("export", run, tmp_path / "no", *more, "--runs-dir", finished)
    assert result.exit_code == 2
    assert told in result.output


def test_an_evaluation_names_its_checkpoint_place_and_output(
    finished: Path, tmp_path: Path
) -> None:
    common = ("max_trajectories=1", "tracking=false", "--runs-dir", finished, "--json")
    new = call("evaluate", "done@8", "--output", tmp_path / "new", *common)
    assert new.exit_code == 0, new.output
    assert new.stderr == ""
    old = call("evaluate", "done", "checkpoint=8", f"output_dir={tmp_path / 'old'}", *common)
    assert old.exit_code == 0, old.output
    assert "note: checkpoint=8 is now written RUN@8" in old.stderr
    assert f"output_dir={tmp_path / 'old'} is now written --output" in old.stderr
    told = [json.loads(shown.stdout) for shown in (new, old)]
    assert told[0]["provenance"]["checkpoint_step"] == told[1]["provenance"]["checkpoint_step"] == 8
    assert (tmp_path / "new" / "report.html").exists()


def test_two_checkpoints_in_one_command_are_refused(finished: Path) -> None:
    result = call("evaluate", "done@8", "checkpoint=last", "--runs-dir", finished)
    assert result.exit_code == 2
    assert "done@8 and checkpoint=last both name a checkpoint" in result.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--workers", 3, "resources.num_workers=2"), "--workers 3 and resources.num_workers=2"),
        (("--runs-dir", "a", "runs_dir=b"), "--runs-dir a and runs_dir=b"),
    ],
)
def test_a_choice_in_both_spellings_is_refused(options: tuple[Any, ...], told: str) -> None:
    result = call("pretrain", "configs/quickstart/pretrain.yaml", *options, "--dry-run")
    assert result.exit_code == 2
    assert f"error: {told} make the same choice: keep the first" in result.stderr


@pytest.mark.parametrize(
    ("verb", "advice"), [("status", "checkpoint inspect done@8"), ("resume", "done --from 8")]
)
def test_verbs_of_runs_say_what_to_do_with_a_checkpoint(
    finished: Path, verb: str, advice: str
) -> None:
    result = call(verb, "done@8", "--runs-dir", finished)
    assert result.exit_code == 2
    assert advice in result.output
