"""What every request meets first: the host that it names, the token, and the counting."""

import asyncio
import contextlib
import json
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pelagos.jobs.serving.access_token import carries, is_loopback
from pelagos.jobs.serving.measuring import Measurements

# They say nothing of the model, and probes and browsers cannot send a token.
OPEN = ("/health", "/docs", "/openapi.json")
_NO_TOKEN = "send the server's token: Authorization: Bearer TOKEN"
_WRONG_HOST = (
    "this server needs no token, so it answers only requests for the host it listens on; got {}"
)
_FAILED = 500
_DISCARDED_BYTES, _DISCARDED_SECONDS = 64 * 2**20, 10.0


class Guard:
    """Rejects requests before their bodies are read, and counts all of them."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        paths: Collection[str],
        measurements: Measurements,
    ) -> None:
        self._app, self._token = app, token
        self._paths, self._measurements = frozenset(paths), measurements

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no web sockets, nothing at start and end
        begun, status = time.perf_counter(), _FAILED
        body = _Body(receive)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if "expect" not in Headers(
                    scope=scope
                ):  # who asks before sending gets the answer now
                    await body.discard()
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            if not await self._rejected(scope, noting):
                await self._app(scope, body.receive, noting)
        finally:
            self._measurements.count_request(path, status, time.perf_counter() - begun)

    async def _rejected(self, scope: Scope, send: Send) -> bool:
        headers = Headers(scope=scope)
        if self._token is None:
            # else a page of another site could have a browser ask here, under a name of its own
            host = headers.get("host", "").strip()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if not is_loopback(name.strip("[]")):
                await _answer(send, 421, _WRONG_HOST.format(repr(host[:100])))
                return True
        elif scope["path"] not in OPEN and not carries(headers.get("authorization"), self._token):
            await _answer(send, 401, _NO_TOKEN, [(b"www-authenticate", b"Bearer")])
            return True
        return False


class _Body:
    """The body of a request, and how much of it was read.

    Most clients send all of a body before they read an answer: one that is refused unread would be an
    error of their connection, without the text that says why.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self._is_complete = receive, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_complete = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self) -> None:
        """Read the rest, up to a limit of bytes and seconds, and forget it."""
        count = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARDED_SECONDS):
                while not self._is_complete and count < _DISCARDED_BYTES:
                    count += len((await self.receive()).get("body", b""))


async def _answer(
    send: Send, status: int, text: str, more: Collection[tuple[bytes, bytes]] = ()
) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
