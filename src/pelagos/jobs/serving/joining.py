"""One pass through the network at a time, for all that waits when it begins."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from torch import Tensor

from pelagos.jobs.serving.answering import Part

PassThrough = Callable[[list[Part]], Awaitable[list[Tensor]]]


class Joining:
    """Takes parts through the network, joined with others'.

    Ray Serve closes a batch by the clock, also while the network is busy, so small batches pile
    up. Here they wait together, and the next pass takes all of them, up to its size.
    """

    def __init__(self, pass_through: PassThrough, size: int) -> None:
        """`size`: samples of one pass, at most."""
        self._pass_through, self._size = pass_through, size
        self._waiting: deque[tuple[Part, asyncio.Future[Tensor]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return the network's answer to each part; first come, first served."""
        loop = asyncio.get_running_loop()
        own = [(part, loop.create_future()) for part in parts]
        self._waiting.extend(own)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        answers: list[Tensor] = await asyncio.gather(*(answer for _, answer in own))
        return answers

    async def _work(self) -> None:
        while self._waiting:
            taken = self._taken()
            waiting = [answer for _, answer in taken]
            try:
                answers = await self._pass_through([part for part, _ in taken])
            except Exception as error:  # whatever it is, it is theirs
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, answer in zip(waiting, answers, strict=True):
                if not future.done():  # as it is if who asked has left
                    future.set_result(answer)

    def _taken(self) -> list[tuple[Part, asyncio.Future[Tensor]]]:
        taken: list[tuple[Part, asyncio.Future[Tensor]]] = []
        count = 0
        while self._waiting:
            samples = len(self._waiting[0][0][0])
            if taken and count + samples > self._size:
                break
            count += samples
            taken.append(self._waiting.popleft())
        return taken
