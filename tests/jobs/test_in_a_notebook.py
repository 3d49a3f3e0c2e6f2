"""`pelagos.train` in a real Jupyter kernel: what is displayed, and what an interrupt does."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.records.runs import RunDirectory

WAIT_SECONDS = 120
REFRESH_SECONDS = 1.5  # longer than the half second between two looks of a training's watcher
MakeText = Callable[[tuple[str, str], Path, str], str]
pytestmark = pytest.mark.slow


class Notebook:
    """A kernel, and the messages that its cells send."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self.messages: list[dict[str, Any]] = []

    def start(self, code: str) -> str:
        self.messages = []
        return str(self.client.execute(code))

    def run(self, code: str) -> dict[str, Any]:
        return self.finish(self.start(code))

    def finish(self, cell: str) -> dict[str, Any]:
        """Return the reply to a cell, when everything that it displayed has arrived."""
        self.wait(lambda: any(self._is_idle(message, cell) for message in self.messages))
        reply = self.client.get_shell_msg(timeout=WAIT_SECONDS)
        return dict(reply["content"])

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.messages[-3:]
            try:
                self.messages.append(self.client.get_iopub_msg(timeout=0.05))
            except queue.Empty:
                continue

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["msg_type"] == kind]

    def value(self, expression: str) -> Any:
        """The value of an expression that JSON can hold."""
        reply = self.run(f"import json; print(json.dumps({expression}))")
        assert reply["status"] == "ok", reply
        text = "".join(message["content"]["text"] for message in self.of_type("stream"))
        return json.loads(text.strip().splitlines()[-1])

    @staticmethod
    def _is_idle(message: dict[str, Any], cell: str) -> bool:
        is_state = (
            message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
        )
        return is_state and message["parent_header"].get("msg_id") == cell


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    manager, client = start_new_kernel(cwd=str(tmp_path_factory.mktemp("notebook")))
    try:
        opened = Notebook(manager, client)
        opened.run(
            "import pelagos\nfrom pelagos.jobs.interactive import live\n"
            f"live.REFRESH_SECONDS = {REFRESH_SECONDS}"
        )
        yield opened
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def job_file(tiny_job_text: MakeText, datasets: tuple[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(tiny_job_text(datasets, tmp_path, "cell"))
    return path


def test_a_training_shows_itself_and_an_interrupt_saves_it(
    notebook: Notebook, job_file: Path, tmp_path: Path
) -> None:
    steps = 1000
    keys = (
        f"schedule.total_steps={steps}",
        "checkpoint.every_steps=1000",
        "tracking.uri=null",
        "validation.every_steps=100",
    )
    told = ", ".join(map(repr, keys))
    cell = notebook.start(f"run = pelagos.train({str(job_file)!r}, {told})\nrun")
    updates = "update_display_data"
    notebook.wait(lambda: len(notebook.of_type(updates)) >= 2)
    notebook.manager.interrupt_kernel()
    reply = notebook.finish(cell)
    assert reply["status"] == "ok", reply
    (shown,) = (
        message for message in notebook.of_type("display_data")
    )  # one picture, and no line of the console besides
    identity = shown["content"]["transient"]["display_id"]
    sent = notebook.of_type(updates)
    assert {message["content"]["transient"]["display_id"] for message in sent} == {identity}
    assert {message["parent_header"]["msg_id"] for message in sent} == {cell}
    times = [message["header"]["date"].timestamp() for message in (shown, *sent)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert min(gaps[:-1]) >= REFRESH_SECONDS - 0.1  # the last picture is drawn at once
    page = sent[-1]["content"]["data"]["text/html"]

    run = RunDirectory(tmp_path / "runs" / "cell")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    done = lines[-1]["step"]
    assert f"<td style='text-align:left'>{done:,} of {steps:,}</td>" in page
    assert "data:image/png;base64," in page
    (result,) = notebook.of_type("execute_result")
    text = result["content"]["data"]["text/plain"]
    assert text == f"Run('cell', stopped at step {done} of {steps}: stop requested)"
    assert CheckpointStore(run.checkpoint_uri).latest_step() == done
    assert notebook.value("[run.outcome.kind, run.outcome.step, run.outcome.is_saved]") == [
        "stopped",
        done,
        True,
    ]
    # the run's own log has the lines that the cell does not show
    assert f"stopped after step {done}: stop requested" in (run.path / "output.log").read_text()

    table = notebook.value("json.loads(run.metrics['loss'].to_json())")
    assert table == {str(line["step"]): pytest.approx(line["loss"]) for line in lines}
    status = notebook.value("json.loads(run.status.model_dump_json())")
    command = [sys.executable, "-m", "pelagos.cli.main", "status", "cell", "--json"]
    by_verb = subprocess.run(
        [*command, "--runs-dir", str(run.path.parent)], capture_output=True, text=True, check=True
    )
    assert status == json.loads(by_verb.stdout)

    assert notebook.run("run.resume()")["status"] == "ok"
    assert notebook.value("[run.outcome.kind, len(run.metrics), run.status.attempt]") == [
        "finished",
        steps,
        2,
    ]
    assert notebook.value("list(map(int, run.validations.index))") == list(
        range(100, steps + 1, 100)
    )


BUILDS_FOREVER = """
import time
from pelagos.jobs import pretrain
kept = pretrain.{name}
pretrain.{name} = lambda *given: time.sleep(600)
"""


def test_before_the_first_step_an_interrupt_says_that_nothing_was_saved(
    notebook: Notebook, job_file: Path, tmp_path: Path
) -> None:
    # the parts are built in this process, after the launch
    notebook.run(
        BUILDS_FOREVER.format(name="_builder").replace("lambda *given", "lambda _: lambda job")
    )
    cell = notebook.start(f"run = pelagos.train({str(job_file)!r}, 'tracking.uri=null')")
    events = tmp_path / "runs" / "cell" / "events.jsonl"
    notebook.wait(lambda: events.exists() and "launched" in events.read_text())
    time.sleep(0.5)
    notebook.manager.interrupt_kernel()
    reply = notebook.finish(cell)
    notebook.run("pretrain._builder = kept")
    assert reply["status"] == "ok", reply
    outcome = notebook.value("[run.outcome.kind, run.outcome.is_saved, run.outcome.cause]")
    assert outcome == ["stopped", False, "SIGINT before the first step: there was nothing to save"]
    assert notebook.value("[len(run.metrics), list(run.metrics), run.metrics.index.name]") == [
        0,
        ["loss"],
        "step",
    ]
    assert notebook.value("[len(run.validations), list(run.validations)]") == [
        0,
        ["validation_loss"],
    ]
    assert "there was nothing to save" in notebook.value("repr(run)")
    assert notebook.run("run.resume()")["status"] == "ok"
    assert notebook.value("[run.outcome.kind, len(run.metrics)]") == ["finished", 8]


def test_while_a_job_is_checked_an_interrupt_says_that_nothing_was_saved(
    notebook: Notebook, job_file: Path, tmp_path: Path
) -> None:
    notebook.run(BUILDS_FOREVER.format(name="checked"))
    cell = notebook.start(f"pelagos.train({str(job_file)!r})")
    notebook.wait(lambda: bool(notebook.of_type("execute_input")))
    time.sleep(1.0)
    notebook.manager.interrupt_kernel()
    reply = notebook.finish(cell)
    notebook.run("pretrain.checked = kept")
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert reply["evalue"] == "interrupted before the training of 'cell' began: nothing was saved"
    assert not (tmp_path / "runs").exists()
