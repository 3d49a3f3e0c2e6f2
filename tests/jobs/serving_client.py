"""A server of a small model in this process, and bodies for it."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from pelagos.jobs.serving.answering import Answer, Answerer, Question
from pelagos.jobs.serving.front import Front
from pelagos.jobs.serving.limits import Limits

NPY = {"content-type": "application/x-npy"}
NPZ = {"content-type": "application/x-npz"}
HERE = "http://127.0.0.1:8000"
LIMITS = Limits(request_mib=1, answer_mib=1, samples=8, points=300, leads=30, timeout_seconds=20)


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


def waves() -> np.ndarray:
    """Three samples `[sample, channel, y, x]`."""
    x = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    parts = [np.sin(x[None, :] + 0.3 * k) * np.cos(x[:, None]) for k in range(12)]
    return (1.5 + 0.7 * np.stack(parts).reshape(3, 4, 16, 16)).astype(np.float32)
