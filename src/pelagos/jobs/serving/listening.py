"""A port of this machine, and a thread that answers there."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 256
_END_SECONDS = 10
_LOOK_SECONDS = 0.5
# Beside requests in work: probes, and requests that are refused.
MOST_CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any that is free.

    Raises:
        OSError: the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot listen on {host} port {port}: {reason}. Choose another --port"
        ) from None


def address_of(listener: socket.socket) -> str:
    """Return the address for browsers."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Answering:
    """A server in a thread of its own."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server, self._listener = server, listener
        # not Thread.join: interrupted by a signal, it takes the thread for ended (Python 3.11)
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="http", daemon=True).start()

    def wait(self) -> None:
        """Wait until the server ends by itself, as it should not; signals interrupt it."""
        while not self._ended.wait(_LOOK_SECONDS):
            pass

    def stop(self) -> None:
        """Take no more requests, and finish those in work, for 10 s at most."""
        self._server.should_exit = True
        self._ended.wait(2 * _END_SECONDS)

    def _run(self) -> None:
        try:
            self._server.run([self._listener])
        finally:
            self._ended.set()


@contextlib.contextmanager
def answering(app: ASGIApp, listener: socket.socket) -> Iterator[Answering]:
    """Answer requests in a thread for as long as the context."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    server = uvicorn.Server(config)
    running = Answering(server, listener)
    try:
        yield running
    finally:
        running.stop()
