"""The served interface, without Ray: numbers, errors in words, readiness, metrics, documents."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError
from starlette.testclient import TestClient
from tests.jobs.serving_client import (
    LIMITS,
    NPY,
    NPZ,
    InThisProcess,
    client_of,
    front_of,
    loaded,
    npy,
    npz,
    waves,
)

from pelagos.jobs.serving.answering import Answerer, Part, Question
from pelagos.jobs.serving.front import Front
from pelagos.jobs.serving.joining import Joining
from pelagos.jobs.serving.limits import Limits, Refused
from pelagos.jobs.serving.replicas import RayBackend

ByHand = Callable[[np.ndarray, float], np.ndarray]
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # batches of another size round otherwise


@pytest.fixture(scope="module")
def client(exported: Path) -> TestClient:
    return client_of(front_of(exported))


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    return waves()


def test_json_gives_the_plain_networks_numbers(
    client: TestClient, fields: np.ndarray, by_hand: ByHand
) -> None:
    answer = client.post("/predict", json={"fields": fields.tolist(), "lead_time": 0.1}).json()
    np.testing.assert_allclose(answer["forecast"], by_hand(fields, 0.1), **CLOSE)
    assert (answer["fields"], answer["lead_time"]) == (list(FIELDS), [0.1])
    assert (answer["time_unit"], answer["warnings"]) == ("1", [])
    # one sample for several leads, another order of the fields
    asked = {"fields": fields[0, ::-1].tolist(), "names": FIELDS[::-1], "lead_time": [0.05, 0.2]}
    answer = client.post("/predict", json=asked).json()
    assert answer["fields"] == list(FIELDS[::-1])
    for lead, forecast in zip((0.05, 0.2), answer["forecast"], strict=True):
        np.testing.assert_allclose(forecast, by_hand(fields[:1], lead)[0, ::-1], **CLOSE)
    # fields by name; the shortest lead
    named = {name: fields[:, channel].tolist() for channel, name in enumerate(FIELDS)}
    answer = client.post("/predict", json={"fields": dict(reversed(named.items()))}).json()
    np.testing.assert_allclose(
        answer["forecast"]["velocity-y"], by_hand(fields, 0.05)[:, 2], **CLOSE
    )
    assert answer["lead_time"] == [0.05]


def test_numpy_goes_in_and_comes_out(
    client: TestClient, fields: np.ndarray, by_hand: ByHand
) -> None:
    answer = client.post("/predict?lead_time=0.1", content=npy(fields), headers=NPY)
    assert answer.headers["content-type"] == "application/x-npy"
    np.testing.assert_allclose(loaded(answer.content), by_hand(fields, 0.1), **CLOSE)
    big_endian = np.asfortranarray(fields[0].astype(">f8"))
    query = "/predict?lead_time=0.1&lead_time=0.2"
    found = loaded(client.post(query, content=npy(big_endian), headers=NPY).content)
    assert (found.shape, found.dtype) == ((2, 4, 16, 16), ">f8")
    np.testing.assert_allclose(found[1], by_hand(fields[:1], 0.2)[0], **CLOSE)
    body = npz(fields=fields, lead_time=[0.05, 0.1, 0.2], absent=["pressure"])
    whole = loaded(client.post("/predict", content=body, headers=NPZ).content)
    assert set(whole.files) == {"forecast", "fields", "lead_time", "warnings"}
    assert np.isnan(whole["forecast"][:, 3]).all()
    assert np.isfinite(whole["forecast"][:, :3]).all()
    assert list(whole["fields"]) == list(FIELDS)
    named = {name: fields[:, channel] for channel, name in enumerate(FIELDS)}
    whole = loaded(client.post("/rollout", content=npz(steps=2, **named), headers=NPZ).content)
    second = by_hand(by_hand(fields, 0.05), 0.05)
    np.testing.assert_allclose(whole["pressure"][:, 1], second[:, 3], **CLOSE)
    np.testing.assert_allclose(whole["lead_time"], [0.05, 0.1])


def test_a_rollout_feeds_forecasts_back_and_absent_fields_are_null(
    client: TestClient, fields: np.ndarray, by_hand: ByHand
) -> None:
    asked = {"fields": fields.tolist(), "steps": 3, "lead_time": 0.1}
    answer = client.post("/rollout", json=asked).json()
    state = fields
    for step in range(3):
        state = by_hand(state, 0.1)
        got = np.asarray(answer["forecast"])[:, step]
        np.testing.assert_allclose(got, state, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answer["lead_time"], [0.1, 0.2, 0.3])
    asked = {"fields": fields[0].tolist(), "absent": ["velocity-x"]}
    forecast = client.post("/predict", json=asked).json()["forecast"]
    assert forecast[1] == [[None] * 16] * 16


def test_doubts_come_with_the_answer(client: TestClient, fields: np.ndarray) -> None:
    answer = client.post("/predict", json={"fields": fields.tolist(), "lead_time": 0.123}).json()
    (doubt,) = answer["warnings"]
    assert "was never trained for the lead time 0.123" in doubt
    answer = client.post("/predict?lead_time=0.1", content=npy(1e5 * fields), headers=NPY)
    (doubt,) = json.loads(answer.headers["pelagos-warnings"])
    assert "standard deviations from the mean" in doubt


def nan_at_one_point(fields: np.ndarray) -> list[Any]:
    spoilt = fields.copy()
    spoilt[1, 2, 3, 4] = np.nan
    return np.where(np.isnan(spoilt), None, spoilt.astype(object)).tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lead_time": -0.1}, "lead_time -0.1: expected a time ahead"),
        ({"lead_time": "0.1"}, "lead_time"),
        ({"lead_time": [0.1, 0.2]}, "got 3 samples and 2 lead times"),
        ({"lead": 0.1}, "lead: Extra inputs are not permitted. A request has the keys fields"),
        ({"names": ["density", "vx", "velocity-y", "pressure"]}, "vx is none of the model's"),
        ({"absent": ["salt"]}, "absent names salt"),
        ({"fields": [[1.0, 2.0]]}, r"shape (1, 2), expected [batch, 4 channels, y, x]"),
        ({"fields": [[1.0], [1.0, 2.0]]}, "fields: expected nested lists of equal lengths"),
        ({"fields": "zeros"}, "fields holds <U5"),
        ({"fields": [["1.0"]]}, "expected real numbers"),
        ({"fields": [[None, "1.0"]]}, "of numbers or null"),
        ({"fields": [[10**400]]}, "too large for float32"),
        ({"fields": {"density": [[1.0]], "pressure": [[1.0, 2.0]]}}, "different shapes"),
        ({"fields": {"density": [[1.0]]}}, "velocity-x, velocity-y, pressure is missing"),
        ({"fields": {}}, "fields is empty"),
    ],
)
def test_what_cannot_be_meant_is_rejected_in_words(
    client: TestClient, fields: np.ndarray, change: dict[str, Any], told: str
) -> None:
    answer = client.post("/predict", json={"fields": fields.tolist(), **change})
    assert answer.status_code == 422
    assert set(answer.json()) == {"detail"}
    assert told in answer.json()["detail"]


def test_values_that_are_no_numbers_are_rejected_with_their_place(
    client: TestClient, fields: np.ndarray
) -> None:
    for body in (
        json.dumps({"fields": nan_at_one_point(fields)}),
        json.dumps({"fields": nan_at_one_point(fields)}).replace("null", "NaN"),
        json.dumps({"fields": nan_at_one_point(fields)}).replace("null", "1e60"),
    ):
        answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert "velocity-y has 1 values that are NaN or infinite" in answer.json()["detail"]
        assert "[1, 3, 4]" in answer.json()["detail"]
    for steps in (0, -2):
        answer = client.post("/rollout", json={"fields": fields.tolist(), "steps": steps})
        assert (answer.status_code, "at least one" in answer.text) == (422, True)


def test_it_is_ready_only_once_the_model_has_answered(exported: Path, fields: np.ndarray) -> None:
    front = Front("waves", LIMITS, None)
    client = client_of(front)
    assert (client.get("/health").status_code, client.get("/health").json()) == (
        503,
        {"status": "starting"},
    )
    answer = client.post("/predict", json={"fields": fields.tolist()})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    backend = InThisProcess(exported, LIMITS)
    asyncio.run(front.open(backend))
    assert (client.get("/health").status_code, client.get("/health").json()) == (
        200,
        {"status": "ready"},
    )
    assert (
        list(backend.answerer.forecaster.trained_on.lead_times)
        == client.get("/model").json()["lead_times"]
    )
    del backend.answerer  # it no longer answers
    assert (client.get("/health").status_code, client.get("/health").json()) == (
        503,
        {"status": "not answering"},
    )
    answer = client.post("/predict", json={"fields": fields.tolist()})
    assert (answer.status_code, answer.json()) == (
        500,
        {"detail": "the server failed; its log says why"},
    )


def test_a_model_that_cannot_answer_is_never_ready(exported: Path) -> None:
    front = Front("waves", LIMITS, None)
    none = Limits(points=1)
    with pytest.raises(RuntimeError, match="256 grid points, the limit is 1"):
        asyncio.run(front.open(InThisProcess(exported, none)))
    assert client_of(front).get("/health").status_code == 503


def test_parts_of_one_grid_share_a_pass_and_others_have_their_own(exported: Path) -> None:
    answerer = Answerer(exported, LIMITS)
    draw = torch.Generator().manual_seed(0)
    sizes = [(1, 16), (2, 32), (3, 16), (1, 32)]
    parts = [
        (torch.randn(count, 4, side, side, generator=draw), torch.rand(count, generator=draw))
        for count, side in sizes
    ]
    together = answerer.pass_through(parts)
    for (frames, leads), answer in zip(parts, together, strict=True):
        alone = answerer.forecaster.network(frames, leads)
        torch.testing.assert_close(answer, alone, rtol=1e-4, atol=1e-5)
    shape = answerer.example().fields.shape
    refused = answerer.answer(Question(np.full(shape, np.nan)))
    assert (refused.status, refused.passes) == (422, (4, 3))  # reported once
    assert answerer.answer(answerer.example()).passes == (1,)


def test_what_waits_for_the_network_goes_together() -> None:
    passes: list[list[float]] = []
    busy, answered = asyncio.Event(), []
    tasks: list[asyncio.Task[list[torch.Tensor]]] = []

    async def network(parts: list[Part]) -> list[torch.Tensor]:
        passes.append([float(leads[0]) for _, leads in parts])
        if len(passes) == 1:
            await busy.wait()
        await asyncio.sleep(0.01)
        answered.append(sum(task.done() for task in tasks))
        if -1.0 in passes[-1]:
            raise OSError("out of memory")
        return [frames + leads for frames, leads in parts]

    async def asked() -> list[Any]:
        joining = Joining(network, size=4)
        # the first has the network; then parts of 1, 2, 2, 1 and 6 samples come one by one
        parts = [(torch.zeros(n), torch.full((n,), float(n))) for n in (1, 1, 2, 2, 1, 6)]
        parts += [(torch.zeros(1), torch.tensor([-1.0]))]
        for part in parts:
            tasks.append(asyncio.create_task(joining([part])))
            await asyncio.sleep(0.01)
        assert len(passes) == 1
        busy.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(asked())
    assert passes == [[1.0], [1.0, 2.0], [2.0, 1.0], [6.0], [-1.0]]
    assert answered == [0, 1, 3, 5, 6]  # each as soon as its own pass ended
    assert [float(answer[0][0]) for answer in answers[:-1]] == [1, 1, 2, 2, 1, 6]
    assert isinstance(answers[-1], OSError)


def numbers(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every number of /metrics, by its name and labels, as Prometheus' own reader finds them."""
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_errors_and_samples(exported: Path, fields: np.ndarray) -> None:
    client = client_of(front_of(exported))
    before = numbers(client)
    assert before["pelagos_serve_ready", ()] == 1
    client.post("/predict", json={"fields": fields.tolist()})
    client.post("/predict", json={"fields": fields.tolist(), "lead_time": -1})
    client.post("/rollout", json={"fields": fields.tolist(), "steps": 2})
    client.get("/a/path/that/is/not/there")
    after = numbers(client)
    assert after["pelagos_serve_requests_total", ("/predict", "200")] == 1
    assert after["pelagos_serve_requests_total", ("/predict", "422")] == 1
    assert after["pelagos_serve_errors_total", ("/predict", "422")] == 1
    assert ("pelagos_serve_errors_total", ("/predict", "200")) not in after
    assert after["pelagos_serve_errors_total", ("other", "404")] == 1
    assert after["pelagos_serve_request_seconds_count", ("/predict",)] == 2
    name = "pelagos_serve_batch_samples"
    # one pass of three samples, then two of the rollout
    assert after[f"{name}_count", ()] - before[f"{name}_count", ()] == 3
    assert after[f"{name}_sum", ()] - before[f"{name}_sum", ()] == 9
    assert after["pelagos_serve_requests_in_work", ()] == 0


def test_the_openapi_document_says_what_is_asked_and_answered(
    client: TestClient, fields: np.ndarray
) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)

    def check(name: str, value: Any) -> None:
        # as OpenAPI 3.1 says: JSON Schema 2020-12, references from the whole document
        reference = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(reference).validate(value)

    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(schemas)
    asked = {"fields": fields.tolist(), "lead_time": [0.05, 0.1, 0.2], "absent": ["pressure"]}
    for path, kind, request in (
        ("/predict", "PredictRequest", asked),
        ("/rollout", "RolloutRequest", {"fields": {"density": [[1.0]]}, "steps": 2}),
    ):
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        assert set(content) == {"application/json", "application/x-npy", "application/x-npz"}
        assert content["application/json"]["schema"]["$ref"].endswith(kind)
        assert set(content) == set(operation["responses"]["200"]["content"])
        check(kind, request)
        answer = client.post(path, json=request)
        assert str(answer.status_code) in operation["responses"]
        check("ForecastAnswer" if answer.status_code == 200 else "Problem", answer.json())
        with pytest.raises(jsonschema.ValidationError):
            check(kind, {**request, "lead": 0.1})
    check("Model", client.get("/model").json())
    check("Health", client.get("/health").json())
    assert "security" not in document["paths"]["/predict"]["post"]


def test_the_page_needs_no_network_and_shows_all_of_it(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page) == ["openapi.json"]
    assert not re.search(r"@import|url\(", page)
    document = client.get("/openapi.json").json()
    for path in document["paths"]:
        assert path in page
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page
        assert all(f"<code>{key}</code>" in page for key in schema["properties"])


def test_a_lost_request_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Lost:
        async def remote(self, _: Question) -> None:
            raise RayActorError(error_msg="The actor died.\n\tclass_name: model\n\tpid: 1")

    backend = RayBackend(SimpleNamespace(answer=Lost()))
    with pytest.raises(Refused, match="try again soon"):
        asyncio.run(backend.answer(Question(np.zeros((1, 1, 8, 8), np.float32))))
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "a request was lost: The actor died." in record.getMessage()
