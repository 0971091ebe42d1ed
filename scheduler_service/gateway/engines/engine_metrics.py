"""How does the gateway learn the engine's metrics? It asks the scheduler, once for all who want them now."""

import asyncio
from collections.abc import Callable

from pagewire.ipc.requests import GetMetrics, MetricValues


class EngineMetrics:
    """Questions to the scheduler, and its answers.

    Args:
        send: sends a question; False: there is nobody to ask.
    """

    def __init__(self, send: Callable[[GetMetrics], bool]) -> None:
        self._send = send
        self._number = 0
        self._answer: asyncio.Future[MetricValues] | None = None

    async def ask(self, timeout_s: float) -> MetricValues | None:
        """What the scheduler counts now; None if it does not say so in time."""
        if self._answer is None or self._answer.done():
            self._number += 1
            if not self._send(GetMetrics(self._number)):
                return None
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            # Others may still wait for it, but who asks next asks anew.
            if self._answer is answer:
                self._answer = None
            return None

    def take(self, values: MetricValues) -> None:
        """The scheduler has answered."""
        if self._answer is not None and not self._answer.done() and values.number == self._number:
            self._answer.set_result(values)
