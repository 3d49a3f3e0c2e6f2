"""The rules of the served interface, without Ray: numbers, damage, limits, token, page."""

import asyncio
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pelagos.jobs.serving.access_token import VARIABLE, read_token
from pelagos.jobs.serving.answering import Answer, Answerer, Question
from pelagos.jobs.serving.front import Front
from pelagos.jobs.serving.limits import Limits

ByHand = Callable[[np.ndarray, float], np.ndarray]
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # batches of another size round otherwise
NPY = {"content-type": "application/x-npy"}
NPZ = {"content-type": "application/x-npz"}
HERE = "http://127.0.0.1:8000"
LIMITS = Limits(request_mib=1, answer_mib=1, samples=8, points=300, leads=30, timeout_seconds=20)
TOKEN = "a-token-that-nobody-guesses"


class InThisProcess:
    """The model without Ray."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.answerer = Answerer(directory, limits)

    async def answer(self, question: Question) -> Answer:
        return await asyncio.to_thread(self.answerer.answer, question)

    async def facts(self) -> dict[str, Any]:
        return self.answerer.facts()

    async def try_out(self) -> Answer:
        return self.answerer.answer(self.answerer.example())


def front_of(directory: Path, limits: Limits = LIMITS, token: str | None = None) -> Front:
    front = Front("waves", limits, token)
    asyncio.run(front.open(InThisProcess(directory, limits)))
    return front


def client_of(front: Front) -> TestClient:
    return TestClient(front.app, base_url=HERE, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(exported: Path) -> TestClient:
    return client_of(front_of(exported))


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Three samples `[sample, channel, y, x]`."""
    x = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    waves = [np.sin(x[None, :] + 0.3 * k) * np.cos(x[:, None]) for k in range(12)]
    return (1.5 + 0.7 * np.stack(waves).reshape(3, 4, 16, 16)).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def loaded(body: bytes) -> Any:
    return np.load(io.BytesIO(body), allow_pickle=False)


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
        assert (answer.status_code, "at least one step" in answer.text) == (422, True)


class Mischief:
    def __reduce__(self) -> Any:
        return (open, ("unpickled", "w"))


def header_of(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "is no .npy file"),
        (b"\x80\x04K\x01.", "is no .npy file"),
        (header_of("(1000000, 1000000, 1000000)"), "bytes behind it"),
        (header_of("(-1, -1)") + bytes(4), "bytes behind it"),
        (header_of("(2,)") + bytes(12), "bytes behind it"),
        (header_of("(0, 4, 16, 16)"), "bytes behind it"),
        (header_of("(1,)", "'|O'") + bytes(8), "Objects are never read"),
        (header_of("(1,)", "'<M8[s]'") + bytes(8), "expected real numbers"),
        (header_of("(1,)", "[('a', '<f4')]") + bytes(4), "expected real numbers"),
        (header_of("(" * 3000), "is no .npy file"),
        (header_of("__import__('os')"), "is no .npy file"),
    ],
)
def test_damaged_arrays_are_rejected(client: TestClient, body: bytes, told: str) -> None:
    for content, headers in ((body, NPY), (archive_of({"fields.npy": body}), NPZ)):
        answer = client.post("/predict", content=content, headers=headers)
        assert answer.status_code == 422
        assert told in answer.json()["detail"]


def archive_of(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_no_body_is_unpickled(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    np.save(stream, np.array([Mischief()], dtype=object), allow_pickle=True)
    whole = archive_of({"fields.npy": stream.getvalue()})
    for content, headers in ((stream.getvalue(), NPY), (whole, NPZ)):
        answer = client.post("/predict", content=content, headers=headers)
        assert (answer.status_code, "Objects are never read" in answer.text) == (422, True)
    assert list(tmp_path.iterdir()) == []


def test_other_damage_and_other_types(client: TestClient, fields: np.ndarray) -> None:
    as_json = {"content-type": "application/json"}
    for body in (
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"fields": ' + b"[" * 90 + b"]" * 90 + b"}",
    ):
        assert client.post("/predict", content=body, headers=as_json).status_code == 422, body[:20]
    for body in (b"PK", archive_of({"fields.npy": npy(fields)})[:-30]):
        answer = client.post("/predict", content=body, headers=NPZ)
        assert (answer.status_code, "no .npz file" in answer.text) == (422, True)
    answer = client.post("/predict", content=npz(velocity=fields), headers=NPZ)
    assert "has an array velocity; expected fields, or one each of density" in answer.text
    answer = client.post("/predict", content=npz(fields=fields, density=fields), headers=NPZ)
    assert "give one or the other" in answer.text
    answer = client.post("/predict?lead_time=soon", content=npy(fields), headers=NPY)
    assert (answer.status_code, "expected a number" in answer.text) == (422, True)
    answer = client.post("/predict?lead_time=0.1", json={"fields": fields.tolist()})
    assert (answer.status_code, "belongs into the body" in answer.text) == (422, True)
    answer = client.post("/predict", content=npy(fields), headers={"content-type": "text/plain"})
    assert (answer.status_code, "application/x-npz" in answer.text) == (415, True)
    assert client.get("/predict").json() == {"detail": "Method Not Allowed"}
    assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_limits_name_themselves_and_their_options(client: TestClient, fields: np.ndarray) -> None:
    large = np.zeros((1, 4, 20, 16), np.float32)
    archive = archive_of({"fields.npy": npy(np.zeros((8, 4, 100, 100), np.float32))})
    assert len(archive) < 10_000
    cases = [
        (npy(np.zeros(2**18 + 1, np.float32)), NPY, "", 413, "1 MiB", "--max-request-mib"),
        (archive, NPZ, "", 413, "1 MiB", "--max-request-mib"),
        (npy(fields.repeat(3, 0)), NPY, "", 422, "9 samples, the limit is 8", "--max-samples"),
        (npy(large), NPY, "", 422, "320 grid points, the limit is 300", "--max-points"),
        (npz(fields=fields[0], lead_time=[0.1] * 31), NPZ, "", 422, "31 lead", "--max-leads"),
        (npy(fields), NPY, "?steps=31", 422, "31 lead times or steps", "--max-leads"),
        (npy(fields.repeat(2, 0)), NPY, "?steps=29", 200, "", ""),
        (npy(fields.repeat(3, 0)[:8]), NPY, "?steps=30", 200, "", ""),
    ]
    for body, headers, query, status, told, option in cases:
        verb = "/rollout" if query else "/predict"
        answer = client.post(verb + query, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        if option:
            assert told in answer.json()["detail"]
            assert option in answer.json()["detail"]
    # a body without a length, and of a length that is not true, is counted as it comes
    answer = client.post("/predict", content=iter([bytes(2**19)] * 3), headers=NPY)
    assert answer.status_code == 413


def test_forecasts_larger_than_the_limit_are_not_made(exported: Path, fields: np.ndarray) -> None:
    front = front_of(exported, Limits(answer_mib=1, leads=1000))
    asked = {"fields": fields.tolist(), "steps": 100}
    answer = client_of(front).post("/rollout", json=asked)
    assert answer.status_code == 422
    assert "2 MiB of forecasts, the limit is 1" in answer.json()["detail"]
    assert "--max-answer-mib" in answer.json()["detail"]


def test_a_token_is_asked_for_and_compared(exported: Path, fields: np.ndarray) -> None:
    client = client_of(front_of(exported, token=TOKEN))
    asked = {"fields": fields.tolist()}
    right = {"authorization": f"Bearer {TOKEN}"}
    wrong = (
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer é",
    )
    for path in ("/model", "/metrics", "/nowhere"):
        assert client.get(path).status_code == 401
    for header in wrong:
        headers = {"authorization": header.encode()}
        answer = client.post("/predict", json=asked, headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert client.post("/predict", json=asked, headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    for path in ("/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    # beyond this machine it is known by any name
    other = TestClient(client.app, base_url="http://models.example.org")
    assert other.post("/predict", json=asked, headers=right).status_code == 200


def test_without_a_token_no_other_name_of_this_machine_is_answered(exported: Path) -> None:
    front = front_of(exported)
    for name, status in (
        ("http://localhost:8000", 200),
        ("http://[::1]:8000", 200),
        ("http://evil.example.org:8000", 421),
        ("http://127.0.0.1.example.org", 421),
    ):
        assert TestClient(front.app, base_url=name).get("/model").status_code == status, name


def test_the_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None, "127.0.0.1") is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "models.example.org"):
        with pytest.raises(ValueError, match="requests must carry a token"):
            read_token(None, host)
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert read_token(None, "0.0.0.0") == TOKEN
    with pytest.raises(ValueError, match="requests must carry"):
        read_token(None, "0.0.0.0")  # it is gone from the environment, which children inherit
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv(VARIABLE, "another-token-of-sixteen")
    assert read_token(str(file), "0.0.0.0") == TOKEN
    for text in ("short", "a token with some blanks", "ein-längeres-token-mit-ä", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match="at least 16 characters of ASCII"):
            read_token(str(file), "127.0.0.1")


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


def test_more_requests_than_may_wait_are_refused(exported: Path, fields: np.ndarray) -> None:
    front = Front("waves", Limits(waiting=1), None)
    held = asyncio.Event()

    class Slow(InThisProcess):
        async def answer(self, question: Question) -> Answer:
            await held.wait()
            return await super().answer(question)

    async def three() -> list[int]:
        await front.open(slow)
        transport = httpx2.ASGITransport(app=front.app)
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            ask = [
                asyncio.create_task(client.post("/predict", json={"fields": fields.tolist()}))
                for _ in range(3)
            ]
            done, _ = await asyncio.wait(ask, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 2:
                more, _ = await asyncio.wait(set(ask) - done, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            held.set()
            return sorted([(await one).status_code for one in ask])

    slow = Slow(exported, LIMITS)
    assert asyncio.run(three()) == [200, 503, 503]


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
