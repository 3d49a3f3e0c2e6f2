"""`pelagos compare-strategies`: a table that can be believed, and an exit status that says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.platform.config import PretrainJob

MakeJob = Callable[..., PretrainJob]
BAD_INPUT, DISAGREE = 2, 1


def compare(path: Path, output: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["compare-strategies", str(path), "--output", str(output), *options]
    )
    return result.exit_code, result.output


@pytest.mark.slow
def test_strategies_are_compared_by_what_their_runs_recorded(
    make_job: MakeJob, tmp_path: Path
) -> None:
    make_job("job", optimizer__lr=0.0003)
    output = tmp_path / "comparison"
    options = ("--strategies", "ddp,fsdp,single", "--workers", "2", "--steps", "5")
    status, text = compare(tmp_path / "job.yaml", output, "--json", *options, "optimizer.lr=0.0003")
    assert status == 0, text
    result = json.loads((output / "comparison.json").read_text())
    # warnings of libraries, which the runner mixes in, go to stderr
    assert json.loads(text[text.index("{") :]) == result
    ddp, fsdp, single = result["layouts"]
    assert [ddp["name"], fsdp["name"], single["name"]] == ["ddp-2", "fsdp-2", "single-1"]
    assert ddp["is_bit_equal"]
    assert fsdp["is_bit_equal"]
    assert single["max_loss_difference"] <= 1e-6
    assert all(row["median_step_seconds"] > 0 for row in result["layouts"])
    assert all(row["peak_memory_bytes"] > 1e8 for row in result["layouts"])
    assert (output / "comparison.png").stat().st_size > 10_000
    assert "| fsdp-2 |" in (output / "comparison.md").read_text()
    status, text = compare(tmp_path / "job.yaml", output, *options)
    assert status == BAD_INPUT
    assert "--overwrite" in text
    assert json.loads((output / "comparison.json").read_text()) == result


@pytest.mark.slow
def test_a_difference_beyond_the_tolerance_fails_by_name(make_job: MakeJob, tmp_path: Path) -> None:
    # the papers' scope forms the loss over each rank's own samples: two ranks learn another thing
    make_job("job", objective__config__loss_scope="micro_batch")
    output = tmp_path / "comparison"
    options = ("--strategies", "single,ddp", "--workers", "2", "--steps", "3")
    status, text = compare(
        tmp_path / "job.yaml", output, *options, "objective.config.loss_scope=micro_batch"
    )
    assert status == DISAGREE
    assert "ddp-2: the loss of step" in text
    assert "the tolerance is 1e-06" in text


def test_what_cannot_run_is_refused_before_anything_starts(
    make_job: MakeJob, tmp_path: Path
) -> None:
    make_job("job")
    output = tmp_path / "comparison"
    for options, complaint in (
        (("--strategies", "dpp"), "unknown strategy dpp"),
        (("--workers", "two"), "expected numbers"),
        (("--strategies", "ddp", "--workers", "3"), "is not a multiple of the 3 workers"),
    ):
        status, text = compare(tmp_path / "job.yaml", output, *options)
        assert status == BAD_INPUT, text
        assert complaint in " ".join(text.split())
        assert not output.exists()
