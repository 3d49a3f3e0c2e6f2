"""An object store that misbehaves: which answers are tried again, and which are not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.object_store import ObjectStore, open_store

CONTENT = bytes(range(100))


@dataclass
class FaultyServer:
    """An S3 endpoint with one object, which first gives the answers in `faults`.

    A fault is a status code, `reset` (the connection is closed without an answer) or `short` (it
    is closed in the middle of the body).
    """

    endpoint: str
    backend: str
    faults: list[int | str] = field(default_factory=list)
    num_requests: int = 0

    def store(self, **policy: Any) -> ObjectStore:
        options = {
            "endpoint_url": self.endpoint,
            "key": "k",
            "secret": "s",
            "pelagos": {"backend": self.backend, **policy},
        }
        return open_store("s3://bucket/folder", options)


@pytest.fixture(params=["obstore", "fsspec"])
def faulty(request: pytest.FixtureRequest) -> Iterator[FaultyServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.num_requests += 1
            fault = server.faults.pop(0) if server.faults else 206
            if fault == "reset":
                self.close_connection = True
                return
            body = CONTENT[10:30]
            if isinstance(fault, int) and fault != 206:
                code = {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(fault, "Error")
                body = f"<Error><Code>{code}</Code><Message>{fault}</Message></Error>".encode()
            self.send_response(206 if fault == "short" else int(fault))
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes 10-29/{len(CONTENT)}")
            self.end_headers()
            if fault == "short":
                body = body[:5]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = FaultyServer(f"http://127.0.0.1:{http.server_address[1]}", request.param)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(10)


@pytest.mark.parametrize("faults", [[503, 503], [500], [429], ["reset"], ["short"], [502, "reset"]])
def test_passing_trouble_is_tried_again(faulty: FaultyServer, faults: list[int | str]) -> None:
    faulty.faults = list(faults)
    # a busy machine may need seconds for a client's first request
    store = faulty.store(first_answer_deadline_seconds=120.0)
    (found,) = store.read_ranges("object", [(10, 20)])
    assert bytes(found) == CONTENT[10:30]
    assert faulty.num_requests == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [(403, DatasetError, "access refused"), (404, ObjectMissingError, "does not exist")],
)
def test_what_cannot_get_better_is_reported_at_once(
    faulty: FaultyServer, fault: int, error: type[Exception], words: str
) -> None:
    faulty.faults = [fault] * 10
    with pytest.raises(error, match=words) as caught:
        faulty.store().read_ranges("object", [(10, 20)])
    assert faulty.num_requests == 1
    for part in ("'bucket'", "folder/object", faulty.endpoint):
        assert part in str(caught.value)


def test_trouble_that_stays_ends_at_the_deadline(faulty: FaultyServer) -> None:
    faulty.faults = [503] * 1000
    store = faulty.store(first_answer_deadline_seconds=2.0)
    store.filesystem.connect()  # importing a client may take half of the time on a busy machine
    with pytest.raises(DatasetError, match=r"no success in \d+ attempts over .* s") as caught:
        store.read("object")
    assert faulty.num_requests >= 2
    assert faulty.num_requests == store.counters.requests == store.counters.retries + 1
    assert "503" in str(caught.value) or "SlowDown" in str(caught.value)
