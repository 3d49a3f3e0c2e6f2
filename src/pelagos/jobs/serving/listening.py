"""A port of this machine, and a thread that answers there."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 256
_END_SECONDS = 10
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


class Failed(RuntimeError):
    """The thread that answers ended by itself."""


@contextlib.contextmanager
def answering(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Answer requests in a thread for as long as the context; then finish those in work, 10 s at most."""
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
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(2 * _END_SECONDS)
        listener.close()
