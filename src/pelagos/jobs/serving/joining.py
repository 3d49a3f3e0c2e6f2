"""One pass through the network at a time, for all that waits when it begins."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from torch import Tensor

from pelagos.jobs.serving.answering import Part

PassThrough = Callable[[list[Part]], Awaitable[list[Tensor]]]


class Joining:
    """Takes parts through the network, joined with others'.

    Ray Serve closes a batch by the clock, also while the network is busy, so small batches pile up before
    it. Here they wait together, and the next pass takes all of them, up to its size.
    """

    def __init__(self, pass_through: PassThrough, size: int) -> None:
        """`size`: samples of one pass, at most."""
        self._pass_through, self._size = pass_through, size
        self._waiting: deque[tuple[Part, asyncio.Future[Tensor]]] = deque()
        self._turn = asyncio.Lock()

    async def __call__(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return the network's answer to each part; first come, first served."""
        loop = asyncio.get_running_loop()
        own = [(part, loop.create_future()) for part in parts]
        self._waiting.extend(own)
        while not all(answer.done() for _, answer in own):
            async with self._turn:
                await self._next_pass()
        return [answer.result() for _, answer in own]

    async def _next_pass(self) -> None:
        taken = self._taken()
        if not taken:  # another turn took them
            return
        try:
            answers = await self._pass_through([part for part, _ in taken])
        except BaseException as error:
            told = error if isinstance(error, Exception) else RuntimeError("the pass was cancelled")
            for _, future in taken:
                future.set_exception(told)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), answer in zip(taken, answers, strict=True):
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
