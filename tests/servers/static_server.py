"""A plain HTTP server of one directory's files, with byte ranges; it cannot list."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@contextlib.contextmanager
def serve_directory(directory: Path, requests: list[str] | None = None) -> Iterator[str]:
    """Serve the files under `directory`; yields the address. `requests` gets each path and range."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if requests is not None and self.command == "GET":
                requests.append(f"{self.path} {self.headers.get('Range', 'whole')}")
            path = directory / unquote(self.path).lstrip("/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            total, asked = len(content), self.headers.get("Range")
            self.send_response(206 if asked else 200)
            if asked:
                start, stop = map(int, asked.removeprefix("bytes=").split("-"))
                content = content[start : stop + 1]
                self.send_header("Content-Range", f"bytes {start}-{stop}/{total}")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
