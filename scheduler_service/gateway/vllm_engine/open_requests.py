"""Which requests are open, so that another call can abort them by their ids?"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from typing import Any


class OpenRequests:
    """Requests by their callers' ids. Several may have the same id; they are aborted together."""

    def __init__(self) -> None:
        self._tasks: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    async def run(self, request_id: str, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work of a request; cancelling this cancels the work. False: it was aborted."""
        task = asyncio.create_task(work)
        self._tasks[request_id].add(task)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
            self._forget(request_id, task)
        if task.cancelled():
            return False
        task.result()
        return True

    def abort(self, request_ids: Iterable[str]) -> int:
        """Abort these requests; those that are not open are ignored. How many were open?"""
        tasks = [task for request_id in request_ids for task in self._tasks.get(request_id, ())]
        return sum(task.cancel() for task in tasks)

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        self._tasks[request_id].discard(task)
        if not self._tasks[request_id]:
            del self._tasks[request_id]
