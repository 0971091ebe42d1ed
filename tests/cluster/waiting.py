"""Wait for what must happen, beside other tasks."""

import asyncio
from collections.abc import Callable

from tests.fakes.patience import PATIENCE_S

_POLL_S = 0.02


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: nobody can believe any more that it will be.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (conditions of files and processes, which tell nobody)
            await asyncio.sleep(_POLL_S)
