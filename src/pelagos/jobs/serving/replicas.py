"""The model on Ray Serve: replicas that answer questions, and batches of what asks at the same time.

Requests do not come through Ray's HTTP proxies, which read a body of any size: the front does
(`front.py`) and asks replicas through a handle.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pelagos import plugins
from pelagos.infra.ray_cluster import keep_replica_on_loopback
from pelagos.jobs.serving.answering import Answer, Answerer, Part, Question
from pelagos.jobs.serving.joining import Joining
from pelagos.jobs.serving.limits import Limits, Refused

logger = logging.getLogger(__name__)
APPLICATION = "pelagos"
# Questions about the model's health are answered beside those in work.
_BESIDE = 8


@dataclass(frozen=True)
class Batching:
    """How requests go together.

    Attributes:
        size: samples of one pass through the network, at most.
        wait_seconds: how long the first request of a batch waits for others.
    """

    size: int = 16
    wait_seconds: float = 0.005


@dataclass(frozen=True)
class Replicas:
    """How many, and what each has."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Replica:
    """One copy of the model in a process of its own."""

    def __init__(
        self,
        directory: str,
        modules: Sequence[str],
        limits: Limits,
        batching: Batching,
        device: str,
    ) -> None:
        from ray import serve

        keep_replica_on_loopback()
        plugins.load(modules)
        self._answerer = Answerer(Path(directory), limits, batching.size, device)
        # questions wait for their passes in threads, and one thread does the passes
        self._asking = ThreadPoolExecutor(limits.waiting, "question")
        self._network = ThreadPoolExecutor(1, "network")
        self._together = serve.batch(
            max_batch_size=batching.size,
            batch_wait_timeout_s=batching.wait_seconds,
            max_concurrent_batches=limits.waiting,  # they are joined, not run at the same time
            batch_size_fn=_samples,
        )(self._joined)
        self._joining = Joining(self._pass_through, batching.size)

    async def answer(self, question: Question) -> Answer:
        """Answer a question; its passes through the network are shared with others."""
        loop = asyncio.get_running_loop()

        def through(frames: Tensor, leads: Tensor) -> Tensor:
            asked = asyncio.run_coroutine_threadsafe(self._one((frames, leads)), loop)
            return asked.result()

        self._answerer.forecaster.through = through  # the loop is the same for all questions
        return await loop.run_in_executor(self._asking, self._answerer.answer, question)

    async def facts(self) -> dict[str, Any]:
        """Return what a client needs to know of the model."""
        return self._answerer.facts()

    async def try_out(self) -> Answer:
        """Answer an example."""
        return await self.answer(self._answerer.example())

    async def _one(self, part: Part) -> Tensor:
        answer: Tensor = await self._together(part)
        return answer

    async def _joined(self, parts: list[Part]) -> list[Tensor]:
        return await self._joining(parts)

    async def _pass_through(self, parts: list[Part]) -> list[Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._network, self._answerer.pass_through, parts)


def _samples(parts: Sequence[Part]) -> int:
    return sum(len(frames) for frames, _ in parts)


class RayBackend:
    """Asks the replicas."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def answer(self, question: Question) -> Answer:
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        try:
            answer: Answer = await self._handle.answer.remote(question)
        except RayTaskError:
            raise
        except (RayError, RayServeException) as error:  # a process of the model ended
            # each request in work ends here: Ray's twenty lines about the process would come for each
            logger.warning("a request was lost: %s", (str(error).splitlines() or [repr(error)])[0])
            raise Refused(503, "the model does not answer: try again soon") from None
        return answer

    async def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = await self._handle.facts.remote()
        return facts

    async def try_out(self) -> Answer:
        answer: Answer = await self._handle.try_out.remote()
        return answer


def deploy(
    directory: Path, replicas: Replicas, limits: Limits, batching: Batching, device: str
) -> RayBackend:
    """Run the model of a directory on the Ray cluster of this process, which ends it with itself."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    deployment = serve.deployment(
        name="model",
        num_replicas=replicas.count,
        max_ongoing_requests=limits.waiting + _BESIDE,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    )(Replica)
    arguments = (str(directory), plugins.named_in_environment(), limits, batching, device)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    handle = serve.run(
        deployment.bind(*arguments), name=APPLICATION, route_prefix=None, logging_config=quiet
    )
    return RayBackend(handle)
