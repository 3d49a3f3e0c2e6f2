"""An HTTP proxy in front of a real object store that spoils chosen answers.

The client addresses the proxy; its `Host` header is passed on, because S3 signatures cover it.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERROR_CODES = {
    400: "ExpiredToken",
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
FAULTS = ("reset", "reset_body", "stall", "stall_body", "cut_body", "short", "wrong")


@dataclass
class Fault:
    """What happens to the next `count` GET requests whose path matches.

    `kind` is a status code, or: `reset` (the connection breaks before an answer), `reset_body` (in
    the middle), `stall`, `stall_body` (nothing more comes), `cut_body` (the connection ends in the
    middle), `short` (half of the bytes, as if that were all), `wrong` (a bit is flipped).
    """

    kind: int | str
    count: int = 1
    path: str = "/data/c/"
    least_bytes: int = 0  # of the range asked for: tells frames from a shard's index
    most_bytes: int = 2**62

    def __post_init__(self) -> None:
        assert self.kind in FAULTS or self.kind in ERROR_CODES, self.kind


@dataclass
class FaultProxy:
    """Listens on the loopback interface; `stop` and `start` take it away and bring it back.

    Attributes:
        faults: still to happen; the first that fits a request is used.
        num_requests, num_faults: GET requests seen, and spoilt.
        num_bytes: of the bodies that answered GET requests.
    """

    upstream: str
    latency_seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    num_requests: int = 0
    num_faults: int = 0
    num_bytes: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """A client that has given up is no news."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and break every connection."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            _break(connection)

    def close(self) -> None:
        self._released.set()
        self.stop()

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes

    def take(self, path: str, asked: int) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            self.num_requests += 1
            for fault in self.faults:
                fits = fault.least_bytes <= asked <= fault.most_bytes
                if fault.count > 0 and fits and re.search(fault.path, path):
                    fault.count -= 1
                    self.num_faults += 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultProxy

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)
        target = urlsplit(self.owner.upstream)
        assert target.hostname is not None
        self.upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=30)

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        self.upstream.close()
        super().finish()

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = int(asked[2]) - int(asked[1]) + 1 if asked else 0
        fault = self.owner.take(self.path, size)
        kind = fault.kind if fault else None
        if self.owner.latency_seconds:
            time.sleep(self.owner.latency_seconds)
        if kind == "reset":
            self._reset()
        elif kind == "stall":
            self.owner._released.wait()
            self.close_connection = True
        elif isinstance(kind, int):
            code = ERROR_CODES[kind]
            self._answer(kind, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
        else:
            self._forward(kind)

    def _forward(self, kind: str | None = None) -> None:
        length = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(length) if length else None
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.upstream.putheader(name, value)
        self.upstream.endheaders(content)
        answer = self.upstream.getresponse()
        body = answer.read()
        if self.command == "GET":
            self.owner.count(len(body))
        if kind == "wrong":
            body = (
                body[: len(body) // 2]
                + bytes([body[len(body) // 2] ^ 1])
                + body[len(body) // 2 + 1 :]
            )
        skipped = ("content-length", "transfer-encoding", "connection", "date", "server")
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
        size = len(body) // 2 if kind == "short" else len(body)
        if self.command == "HEAD":
            size = int(answer.getheader("Content-Length", "0"))
        self.send_response(answer.status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("reset_body", "stall_body", "cut_body"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if kind == "reset_body":
                self._reset()
            elif kind == "stall_body":
                self.owner._released.wait()
            self.close_connection = True
            return
        self.wfile.write(body[:size])

    do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        _break(self.connection)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _break(connection: socket.socket) -> None:
    """Close with a reset rather than an orderly end."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
