"""How does work for an HTTP caller end when the caller is gone?"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


class CallerGoneError(Exception):
    """Nobody is there to answer."""


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Run work, and cancel it when the caller leaves.

    Args:
        receive: of the request, whose body is read.
        work: what to do.
    Raises:
        CallerGoneError: the caller left; the work has been cancelled and has ended.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGoneError
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
        # Its outcome has been told, or there is nobody to tell it to.
        _ = working.cancelled() or working.exception()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
