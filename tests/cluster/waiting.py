"""Wait for what must happen, beside other tasks."""

import asyncio
from collections.abc import Callable

_POLL_S = 0.02
# As a Deployment has it for its progress.
_LIMIT_S = 600.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: nobody can believe any more that it will be.
    """
    async with asyncio.timeout(_LIMIT_S):
        while not condition():  # noqa: ASYNC110 (conditions of files and processes, which tell nobody)
            await asyncio.sleep(_POLL_S)
