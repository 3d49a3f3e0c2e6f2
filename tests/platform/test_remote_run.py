"""What workers write through the actor: each step once, whoever is late."""

from pathlib import Path

from pelagos.platform.records.runs import RunDirectory


def steps(run: RunDirectory) -> list[int]:
    return [record["step"] for record in run.metrics()]


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": float(step)})
    run.append_metrics({"step": 2, "loss": 9.0})  # of workers that were given up
    assert steps(run) == [1, 2, 3]
    # going back to a checkpoint takes the steps after it away first
    run.keep_metrics_until(1)
    for step in (2, 3, 4):
        run.append_metrics({"step": step, "loss": 0.5})
    assert steps(run) == [1, 2, 3, 4]
    assert [record["loss"] for record in run.metrics()] == [1.0, 0.5, 0.5, 0.5]
