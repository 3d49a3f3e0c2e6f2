"""The front of a server: HTTP in this process, with any backend that answers questions behind it."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pelagos import __version__
from pelagos.jobs.serving.answering import Answer, Question
from pelagos.jobs.serving.guard import Guard
from pelagos.jobs.serving.interface import (
    ANSWERS,
    PROBLEMS,
    ForecastAnswer,
    Health,
    Model,
    PredictRequest,
    RolloutRequest,
    request_body,
)
from pelagos.jobs.serving.limits import Limits, Refused
from pelagos.jobs.serving.measuring import CONTENT_TYPE, Measurements
from pelagos.jobs.serving.page import page_of
from pelagos.jobs.serving.questions import (
    Facts,
    Kind,
    query_values,
    read_question,
    write_answer,
)

logger = logging.getLogger(__name__)
HEALTH_SECONDS = 5.0
_RETRY = {"Retry-After": "1"}
# Lists of Python's numbers take many times a body's bytes: few bodies are read at a time.
_READERS = 2


class Backend(Protocol):
    """Whoever has the model."""

    async def answer(self, question: Question) -> Answer:
        """Answer a question, or refuse it; never raises for a wrong one."""

    async def facts(self) -> dict[str, Any]:
        """Return what a client needs to know of the model (`interface.Model`)."""

    async def try_out(self) -> Answer:
        """Answer an example."""


class Front:
    """One server: its state, and what each path does.

    Attributes:
        app: to be run by any ASGI server.
        measurements: what it counted.
    """

    def __init__(self, name: str, limits: Limits, token: str | None) -> None:
        self._name, self._limits = name, limits
        self._backend: Backend | None = None
        self._described: dict[str, Any] = {}
        self._facts = Facts((), 0, "1")
        self._in_work = 0
        self._readers = ThreadPoolExecutor(_READERS, "body")
        self.measurements = Measurements()
        self.app = self._application(token)

    async def open(self, backend: Backend) -> None:
        """Be ready, once the model has answered.

        Raises:
            RuntimeError: it refused its own example.
        """
        answer = await backend.try_out()
        self.measurements.count_passes(answer.passes)
        if answer.forecast is None:
            raise RuntimeError(f"the model did not answer an example: {answer.problem}")
        self._described = await backend.facts()
        told = self._described
        axes = len(told["grids"][0])
        self._facts = Facts(tuple(told["fields"]), axes, told["time_unit"])
        self._backend = backend
        self.measurements.is_ready.set(1)

    def _application(self, token: str | None) -> FastAPI:
        app = FastAPI(
            title="Pelagos model server",
            description="Forecasts of a trained model, in physical units.",
            version=__version__,
            docs_url=None,  # FastAPI's page loads its scripts from other hosts
            redoc_url=None,
        )
        forecasts: dict[str, Any] = {"responses": ANSWERS, "response_model": ForecastAnswer}
        asking: dict[str, Any] = {"methods": ["POST"], **forecasts}
        app.add_api_route(
            "/predict", self.predict, openapi_extra=request_body(PredictRequest), **asking
        )
        app.add_api_route(
            "/rollout", self.rollout, openapi_extra=request_body(RolloutRequest), **asking
        )
        app.add_api_route("/model", self.model, response_model=Model, responses=PROBLEMS)
        unready: dict[int | str, dict[str, Any]] = {503: {"model": Health}}
        app.add_api_route("/health", self.health, response_model=Health, responses=unready)
        plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
        app.add_api_route(
            "/metrics",
            self.metrics,
            response_class=Response,
            responses={**plain, 401: PROBLEMS[401]},
        )
        app.add_api_route("/docs", self.docs, response_class=HTMLResponse, include_in_schema=False)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(HTTPException, _refused)
        app.add_exception_handler(Exception, _refused)  # uvicorn logs it
        paths = ("/predict", "/rollout", "/model", "/health", "/metrics", "/docs", "/openapi.json")
        app.add_middleware(Guard, token=token, paths=paths, measurements=self.measurements)
        _add_schemas(app, has_token=token is not None)
        return app

    async def predict(self, request: Request) -> Response:
        """Forecast fields by one lead time or several."""
        return await self._forecast(PredictRequest, request)

    async def rollout(self, request: Request) -> Response:
        """Forecast fields step by step, each from the forecast before."""
        return await self._forecast(RolloutRequest, request)

    async def model(self) -> dict[str, Any]:
        """Describe the model, and the limits of this server."""
        self._ready()
        return {"name": self._name, "limits": vars(self._limits), **self._described}

    async def health(self) -> Response:
        """Say whether the model answers: 200, or 503."""
        status = "starting"
        if self._backend is not None:
            try:
                await asyncio.wait_for(self._backend.facts(), HEALTH_SECONDS)
                return JSONResponse({"status": "ready"})
            except Exception:  # whatever it is, the model does not answer
                status = "not answering"
        return JSONResponse({"status": status}, 503)

    async def metrics(self) -> Response:
        """Give requests, errors, latencies and batch sizes in Prometheus' text format."""
        return Response(self.measurements.text(), media_type=CONTENT_TYPE)

    async def docs(self) -> HTMLResponse:
        """Show this interface on a page that loads nothing from other hosts."""
        return HTMLResponse(page_of(self.app.openapi()))

    def _ready(self) -> Backend:
        if self._backend is None:
            raise Refused(503, "the model is being loaded; /health says when it is ready")
        return self._backend

    async def _forecast(self, kind: Kind, request: Request) -> Response:
        backend = self._ready()
        if self._in_work >= self._limits.waiting:
            raise Refused(
                503,
                f"{self._limits.waiting} requests are in work, which is the limit: try again soon, or "
                "start the server with a larger --max-waiting",
            )
        self._in_work += 1
        self.measurements.in_work.set(self._in_work)
        try:
            return await self._answered(backend, kind, request)
        finally:
            self._in_work -= 1
            self.measurements.in_work.set(self._in_work)

    async def _answered(self, backend: Backend, kind: Kind, request: Request) -> Response:
        limits, loop = self._limits, asyncio.get_running_loop()
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        query = query_values(kind, request.query_params.multi_items())
        body = await _read(request, limits)
        asked = await loop.run_in_executor(
            self._readers, read_question, kind, content_type, body, query, limits, self._facts
        )
        del body
        try:
            answer = await asyncio.wait_for(backend.answer(asked.question), limits.timeout_seconds)
        except TimeoutError:
            raise Refused(
                504,
                f"no answer within {limits.timeout_seconds:g} s: ask for less at a time, or start the "
                "server with a larger --timeout",
            ) from None
        self.measurements.count_passes(answer.passes)
        if answer.forecast is None:
            raise Refused(answer.status, answer.problem)
        written, headers = await loop.run_in_executor(
            self._readers, write_answer, asked, answer, self._facts
        )
        return Response(written, media_type=content_type, headers=headers)


async def _read(request: Request, limits: Limits) -> bytes:
    """Return the body. Raises Refused: it is too large, or does not arrive in time."""
    told = request.headers.get("content-length", "")
    if told.isdigit():
        limits.check_body(int(told))
    parts, count = [], 0
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            async for part in request.stream():
                count += len(part)
                limits.check_body(count)
                parts.append(part)
    except TimeoutError:
        text = f"the request did not arrive within {limits.timeout_seconds:g} s (--timeout)"
        raise Refused(408, text) from None
    except ClientDisconnect:
        raise Refused(400, "the client left before its request was complete") from None
    return b"".join(parts)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """Write a refusal, of ours or Starlette's, always as `{"detail": TEXT}`."""
    status, text, headers = 500, "the server failed; its log says why", None
    if isinstance(error, Refused):
        status, text = error.status, str(error)
    elif isinstance(error, HTTPException):
        status, text, headers = error.status_code, str(error.detail), error.headers
    return JSONResponse({"detail": text}, status, headers=_RETRY if status == 503 else headers)


def _add_schemas(app: FastAPI, *, has_token: bool) -> None:
    """Add to the OpenAPI document what FastAPI cannot see: bodies read by hand, and the token."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            parts = document.setdefault("components", {})
            for kind in (PredictRequest, RolloutRequest):
                parts.setdefault("schemas", {})[kind.__name__] = kind.model_json_schema()
            if has_token:
                parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path in ("/predict", "/rollout", "/model", "/metrics"):
                    for operation in document["paths"][path].values():
                        operation["security"] = [{"token": []}]
        return app.openapi_schema or document

    app.openapi = openapi  # type: ignore[method-assign]
