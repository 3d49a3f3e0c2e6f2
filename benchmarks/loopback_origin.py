"""An object store on the loopback interface that costs next to nothing: nginx with static files.

It answers like an S3 endpoint with one bucket `bench` that anybody may read: ranges, and the listing of
each dataset's shards, written beforehand. A second port holds every request back for a while
(nginx's echo module). What was asked for is counted from its log.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bench"
MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")

CONFIGURATION = """
{module}
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  log_format bytes '$request_method $status $body_bytes_sent';
  access_log {folder}/access.log bytes;
  sendfile on; tcp_nodelay on; keepalive_requests 100000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location / {{ {listings} }}
  }}
  {delayed}
}}
"""
DELAYED = """
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location / {{ echo_sleep {seconds}; echo_exec @files; }}
    location @files {{ {listings} }}
  }}
"""


@dataclass
class Origin:
    """The running server.

    Attributes:
        endpoint: without delay; `delayed_endpoint` holds each request back.
    """

    folder: Path
    endpoint: str
    delayed_endpoint: str | None

    def counts(self) -> tuple[int, int]:
        """Requests and bytes of bodies sent so far."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return len(lines), sum(int(line.rsplit(" ", 1)[1]) for line in lines)

    def forget(self) -> None:
        """Count from nothing again."""
        with (self.folder / "access.log").open("r+") as log:
            log.truncate(0)  # nginx appends


@contextlib.contextmanager
def serve(folder: Path, names: list[str], latency_seconds: float) -> Iterator[Origin]:
    """Serve `folder/bench`, which holds the datasets `names`."""
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("this benchmark needs nginx: apt-get install nginx-light")
    listings = "".join(_listing(folder, name) for name in names)
    ports = [_free_port(), _free_port()]
    has_delay = MODULE.exists() and latency_seconds > 0
    delayed = DELAYED.format(
        port=ports[1], folder=folder, seconds=latency_seconds, listings=listings
    )
    text = CONFIGURATION.format(
        module=f"load_module {MODULE};" if MODULE.exists() else "",
        folder=folder,
        user="user root;" if Path.home() == Path("/root") else "",
        port=ports[0],
        listings=listings,
        delayed=delayed if has_delay else "",
    )
    (folder / "nginx.conf").write_text(text)
    with (folder / "nginx.out").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)], stdout=log, stderr=log
        )
    try:
        _wait(process, ports[0], folder)
        slow = f"http://127.0.0.1:{ports[1]}" if has_delay else None
        yield Origin(folder, f"http://127.0.0.1:{ports[0]}", slow)
    finally:
        process.terminate()
        process.wait(10)


def _listing(folder: Path, name: str) -> str:
    """Write what S3 would answer to a listing of a dataset's shards; return nginx's rule for it."""
    root = folder / BUCKET
    rows = "".join(
        f"<Contents><Key>{path.relative_to(root).as_posix()}</Key><Size>{path.stat().st_size}</Size>"
        f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag></Contents>"
        for path in sorted((root / name / "data" / "c").rglob("*"))
        if path.is_file()
    )
    text = (
        f"<ListBucketResult><Name>{BUCKET}</Name><KeyCount>1</KeyCount><IsTruncated>false"
        f"</IsTruncated>{rows}</ListBucketResult>"
    )
    (folder / f"{name}.xml").write_text(text)
    return f'if ($args ~ "list-type=2.*{name}|{name}.*list-type=2") {{ rewrite ^ /{name}.xml break; }} '


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nginx did not start: {(folder / 'nginx.out').read_text()[-500:]}")
