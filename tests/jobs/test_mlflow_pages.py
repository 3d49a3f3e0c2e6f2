"""MLflow's own pages of a run, read in a real browser: groups, description, data, model, report."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from selenium.webdriver import Chrome
from tests import browser as browsing

from pelagos.jobs import evaluate, pretrain
from pelagos.platform.config import EvaluateJob, PretrainJob
from pelagos.platform.config.load import parse_job

QUIET = Console(quiet=True)
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def pages(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, MlflowClient]]:
    """The address of the page of an evaluated run on a real MLflow server, and its store's client."""
    directory = tmp_path_factory.mktemp("pages")
    job = parse_job(tiny_job_text(datasets, directory, "shown"), "shown", [])
    assert isinstance(job, PretrainJob)
    pretrain.run(job, QUIET)
    evaluate.run(EvaluateJob(run="shown", runs_dir=job.runs_dir))
    client = MlflowClient(tracking_uri=job.tracking.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'pelagos'")
    (run,) = client.search_runs([experiment.experiment_id])
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", str(job.tracking.uri)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{address}/health") as answer:
                if answer.status == 200:
                    break
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.3)
        yield f"{address}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}", client
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def read(browser: Chrome, address: str, name: str, *awaited: str) -> str:
    """Return the text of a page once all that is awaited stands there, and keep a picture of it."""
    browsing.show(browser, address, 1400)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        text: str = browser.execute_script("return document.body.innerText")
        if all(word in text for word in awaited):
            break
        missing = [word for word in awaited if word not in text]
        assert time.monotonic() < deadline, (missing, text)
        time.sleep(0.3)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
    return text


@pytest.mark.slow
def test_the_page_of_a_run_tells_what_it_is(
    pages: tuple[str, MlflowClient], browser: Chrome
) -> None:
    address, client = pages
    text = read(browser, address, "mlflow-run", "train/loss", "Datasets", "Logged models (1)")
    lines = text.split("\n")
    assert "poseidon-nano, all2all, 8 steps of 4 samples" in text  # the description
    assert lines[lines.index("Source") + 1] == "pelagos pretrain"
    assert lines[lines.index("Created by") + 1] == getpass.getuser()
    assert (
        "evaluation/test/report.html"
        in client.get_run(address[-32:]).data.tags["mlflow.note.content"]
    )
    # the learning curves come before the errors of the evaluation
    order = [lines.index(n) for n in ("train/loss", "validation/loss")]
    first_error = next(i for i, line in enumerate(lines) if line.startswith("evaluation/"))
    assert sorted(order) == order
    assert order[-1] < first_error
    values = set(lines[lines.index("Parameter") :])
    assert not values & {"None", "[]", "{}"}
    read(browser, f"{address}/artifacts", "mlflow-artifacts", "\nevaluation\n", "\nrun\n")


@pytest.mark.slow
def test_curves_are_in_few_groups(pages: tuple[str, MlflowClient], browser: Chrome) -> None:
    address, client = pages
    wanted = ("train\n", "train/loss", "validation\n", "validation/loss", "evaluation\n")
    text = read(browser, f"{address}/model-metrics", "mlflow-curves", *wanted)
    assert "system/" not in text
    assert "evaluation/ns" not in text.split("train\n")[-1]
    read(browser, f"{address}/system-metrics", "mlflow-system", "system/")
    (experiment,) = client.search_experiments(filter_string="name = 'pelagos'")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    shares = client.get_run(address[-32:]).data.metrics
    errors = [v for k, v in shares.items() if k.endswith(".persistence.relative_l1")]
    assert errors
    assert all(0 < value < 5 for value in errors)  # fractions, not percent
