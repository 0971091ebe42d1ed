"""Which calls are open, and may new ones begin? A gateway that drains takes no new ones and waits for the others."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler_service.gateway.exceptions import GatewayDrainingError


class OpenCalls:
    """Counts the calls that do work for a caller."""

    def __init__(self) -> None:
        self.num_open = 0
        self.is_draining = False
        self._none_open = asyncio.Event()
        self._none_open.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one call.

        Raises:
            GatewayDrainingError: no new ones may begin.
        """
        if self.is_draining:
            raise GatewayDrainingError
        self.num_open += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self._none_open.set()

    def close(self) -> None:
        """Let no new calls begin."""
        self.is_draining = True

    async def wait_for_end(self, timeout_s: float) -> bool:
        """Wait until no call is open. False: some still are after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True
