"""Which requests are open, so that another call can abort them by their ids?"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from typing import Any

RequestKey = tuple[str, str]
"""Tenant, and the id that its caller gave a request."""


class OpenRequests:
    """Requests by their keys. Several may have the same key; they are aborted together."""

    def __init__(self) -> None:
        self._tasks: defaultdict[RequestKey, set[asyncio.Task[None]]] = defaultdict(set)

    async def run(self, key: RequestKey, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work of a request; cancelling this cancels the work. False: it was aborted."""
        task = asyncio.create_task(work)
        task.add_done_callback(_note_outcome)
        self._tasks[key].add(task)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
            self._forget(key, task)
        if task.cancelled():
            return False
        task.result()
        return True

    def abort(self, keys: Iterable[RequestKey]) -> int:
        """Abort these requests; those that are not open are ignored. How many were open?"""
        tasks = [task for key in keys for task in self._tasks.get(key, ())]
        return sum(task.cancel() for task in tasks)

    def _forget(self, key: RequestKey, task: asyncio.Task[None]) -> None:
        self._tasks[key].discard(task)
        if not self._tasks[key]:
            del self._tasks[key]


def _note_outcome(task: asyncio.Task[None]) -> None:
    """Where nobody waits for it any more, there is nobody to tell how it ended."""
    _ = task.cancelled() or task.exception()
