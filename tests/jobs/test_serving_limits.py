"""What a server refuses: damaged bodies, too much of anything, no token, another name."""

import asyncio
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.jobs.serving_client import (
    HERE,
    LIMITS,
    NPY,
    NPZ,
    InThisProcess,
    client_of,
    front_of,
    npy,
    npz,
    waves,
)

from pelagos.jobs.serving.access_token import VARIABLE, read_token
from pelagos.jobs.serving.answering import Answer, Question
from pelagos.jobs.serving.front import Front
from pelagos.jobs.serving.limits import Limits

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def client(exported: Path) -> TestClient:
    return client_of(front_of(exported))


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    return waves()


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
    for path in ("/predict", "/predict?lead_time=0.1"):
        answer = client.post(path, content=npy(fields), headers={"content-type": "text/plain"})
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
