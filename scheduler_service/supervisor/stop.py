"""Who asked the service to stop, and how patiently?"""

import asyncio


class Stop:
    """A request to stop, which may come from a signal handler. `is_quick`: open streams are cut instead of drained."""

    def __init__(self) -> None:
        self.is_quick = False
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def request(self, is_quick: bool) -> None:
        """Ask; who asks again decides nothing any more."""
        if not self._event.is_set():
            self.is_quick = is_quick
            self._event.set()

    async def wait(self) -> None:
        """Wait until somebody asks."""
        await self._event.wait()
