"""`pelagos serve` with real Ray: one server of a small model, which all tests of this module ask."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.jobs.test_kills import kill_everything, wait_until
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs.serving.access_token import VARIABLE

ByHand = Callable[[np.ndarray, float], np.ndarray]
CLI = [sys.executable, "-m", "pelagos.cli.main"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
TOKEN = "the-token-of-this-test"
BATCH = 4
# Longer than eight requests need to arrive: a batch that is not full would wait as long.
BATCH_WAIT = "2"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Return status and body; the token goes along unless headers say otherwise."""
        sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-npy", **headers}
        request = urllib.request.Request(self.address + path, body, sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def count(self, name: str) -> float:
        text = self.ask("/metrics")[1].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )


def start(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [*CLI, "serve", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    limits = ["--max-request-mib", "1", "--max-samples", "8"]
    batches = ["--batch-size", str(BATCH), "--batch-wait", BATCH_WAIT]
    arguments = [str(exported), "--port", "0", *limits, *batches]
    process = start(arguments, log, **{VARIABLE: TOKEN, "TMPDIR": str(log.parent)})
    try:
        wait_until(lambda: "ready" in log.read_text(), process, log, pause=0.1)
        found = re.search(r"(http://127\.0\.0\.1:\d+)/predict, with the token", log.read_text())
        assert found is not None, log.read_text()
        yield Server(process, found[1], log)
    finally:
        kill_everything(process)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Eight samples `[sample, channel, y, x]`."""
    values = np.random.default_rng(0).normal(1.5, 0.5, (8, 4, 16, 16))
    return values.astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def forecast_of(answer: tuple[int, bytes]) -> np.ndarray:
    assert answer[0] == 200, answer[1]
    found: np.ndarray = np.load(io.BytesIO(answer[1]), allow_pickle=False)
    return found


@pytest.mark.ray
def test_concurrent_requests_share_passes_and_each_gets_its_own_forecast(
    server: Server, samples: np.ndarray, by_hand: ByHand
) -> None:
    passes, total = (f"pelagos_serve_batch_samples_{end}" for end in ("count", "sum"))
    before = server.count(passes), server.count(total)
    leads = [0.05, 0.1, 0.15, 0.2] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda n: server.ask(f"/predict?lead_time={leads[n]}", npy(samples[n])), range(8)
            )
        )
    for number, lead in enumerate(leads):
        expected = by_hand(samples[number : number + 1], lead)[0]
        np.testing.assert_allclose(forecast_of(answers[number]), expected, **CLOSE)
    # eight requests, two passes of four samples
    assert (server.count(passes) - before[0], server.count(total) - before[1]) == (2, 8)


@pytest.mark.ray
def test_a_wrong_request_in_a_batch_harms_no_other(
    server: Server, samples: np.ndarray, by_hand: ByHand
) -> None:
    spoilt = samples[0].copy()
    spoilt[0, 0, 0] = np.nan
    bodies = [npy(samples[n]) for n in range(BATCH)] + [npy(spoilt)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: server.ask("/predict?lead_time=0.1", body), bodies))
    for number in range(BATCH):
        expected = by_hand(samples[number : number + 1], 0.1)[0]
        np.testing.assert_allclose(forecast_of(answers[number]), expected, **CLOSE)
    status, body = answers[BATCH]
    assert status == 422
    assert "density has 1 values that are NaN or infinite" in json.loads(body)["detail"]


@pytest.mark.ray
def test_larger_requests_json_and_rollouts(
    server: Server, samples: np.ndarray, by_hand: ByHand
) -> None:
    answer = server.ask("/predict?lead_time=0.2", npy(samples))  # two passes of its own
    np.testing.assert_allclose(forecast_of(answer), by_hand(samples, 0.2), **CLOSE)
    asked = json.dumps({"fields": samples[:BATCH].tolist(), "steps": 2, "lead_time": 0.1}).encode()
    status, body = server.ask("/rollout", asked, **{"Content-Type": "application/json"})
    assert status == 200
    second = by_hand(by_hand(samples[:BATCH], 0.1), 0.1)
    forecast = np.asarray(json.loads(body)["forecast"])
    np.testing.assert_allclose(forecast[:, 1], second, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
def test_limits_and_token_hold_over_the_network(server: Server, samples: np.ndarray) -> None:
    assert server.ask("/model", Authorization="")[0] == 401
    status, body = server.ask("/predict", npy(samples), Authorization=f"Bearer {TOKEN}.")
    assert (status, "Authorization: Bearer TOKEN" in json.loads(body)["detail"]) == (401, True)
    status, body = server.ask("/predict", npy(np.zeros(2**18, np.float32)))
    assert (status, "--max-request-mib" in json.loads(body)["detail"]) == (413, True)
    status, body = server.ask("/predict", npy(np.concatenate([samples, samples])))
    assert (status, "the limit is 8" in json.loads(body)["detail"]) == (422, True)
    status, body = server.ask("/health", Authorization="")
    assert (status, json.loads(body)) == (200, {"status": "ready"})
    assert json.loads(server.ask("/model")[1])["fields"][0] == "density"


@pytest.mark.ray
def test_it_listens_on_this_machine_only_and_keeps_the_token_from_its_processes(
    server: Server,
) -> None:
    family = [psutil.Process(server.process.pid)]
    family += family[0].children(recursive=True)
    assert len(family) > 3
    listening = {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    for member in family[1:]:
        assert TOKEN not in member.environ().values()
    assert all(TOKEN not in " ".join(member.cmdline()) for member in family)
    assert TOKEN not in server.log.read_text()


@pytest.mark.ray
def test_sigterm_ends_it_and_all_its_processes(
    server: Server, samples: np.ndarray, by_hand: ByHand
) -> None:
    """The last one, as the server is gone then. A request in work is still answered."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (model,) = server.log.parent.rglob("serve-*")
    with ThreadPoolExecutor(1) as pool:
        # alone in its batch it waits for others, two seconds
        asked = pool.submit(server.ask, "/predict?lead_time=0.1", npy(samples[0]))
        wait_until(
            lambda: server.count("pelagos_serve_requests_in_work") == 1, server.process, server.log
        )
        server.process.send_signal(signal.SIGTERM)
        np.testing.assert_allclose(
            forecast_of(asked.result()), by_hand(samples[:1], 0.1)[0], **CLOSE
        )
    assert server.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not model.exists()
    said = server.log.read_text().splitlines()
    assert [line.split()[0] for line in said] == ["loading", "ready", "ended"]
    assert said[-1] == "ended by SIGTERM"


@pytest.mark.ray
def test_ctrl_c_while_it_starts_ends_it_at_once(exported: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = start([str(exported), "--port", "0"], log)
    try:
        wait_until(lambda: raylets(process), process, log, pause=0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        said = log.read_text().splitlines()
        assert said[-1] == "interrupted by SIGINT: before the model was ready"
        assert "Traceback" not in log.read_text()
    finally:
        kill_everything(process)


def raylets(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.name() == "raylet"]


def test_mistakes_are_told_before_anything_starts(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for arguments, told in (
        ([str(exported), "--host", "0.0.0.0"], "requests must carry a token"),
        ([str(exported), "--device", "gpu"], "expected auto, cpu, cuda"),
        ([str(exported), "--token-file", "nowhere"], "nowhere: No such file"),
        (
            [str(exported), "--host", "192.0.2.1", "--token-file", "token"],
            "cannot listen on 192.0.2.1",
        ),
        (["nothing", "--port", "0"], "there is no model nothing"),
        ([str(tmp_path), "--port", "0"], "is not a model directory"),
    ):
        (tmp_path / "token").write_text(TOKEN)
        shown = CliRunner().invoke(app, ["serve", *arguments])
        assert shown.exit_code == 2, shown.output
        assert told in " ".join(shown.output.split())
