"""How many streams may write in one turn of the event loop?

A step of the engine has news for every stream at once. Served all in one turn, a thousand of them keep the loop for a
tenth of a second, and gRPC takes one new call in two turns: callers who are only to be told that the queue is full
would wait for seconds. So streams take turns, few enough that a turn stays short, and between two turns the loop looks
at sockets and calls. Tokens pool meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

# What a stream takes depends on how much has pooled: a tenth of a millisecond and more.
_LONG_TURN_S, _SHORT_TURN_S = 0.0005, 0.00025
_MOST = 64


class Turns:
    """Lets a few tasks go on in each turn of the loop, first come first. How few follows from how long turns take.

    Args:
        clock: seconds of this thread's own work: a turn that others on the machine make long is none the shorter for
            fewer places.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._most = self._left = _MOST
        self._queue: deque[asyncio.Future[None]] = deque()
        self._is_refill_due = False
        self._began_s = 0.0

    async def take(self) -> None:
        """Wait for a place in a turn of the loop."""
        loop = asyncio.get_running_loop()
        if not self._is_refill_due:
            self._is_refill_due, self._began_s = True, self._clock()
            loop.call_soon(self._refill)
        if self._left > 0:
            self._left -= 1
            return
        place = loop.create_future()
        self._queue.append(place)
        await place

    def _refill(self) -> None:
        """A new turn has begun: those who have waited for longest have the first places in the next."""
        self._adapt()
        self._left = self._most
        while self._queue and self._left > 0:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                self._left -= 1
        self._is_refill_due = self._left < self._most
        if self._is_refill_due:
            asyncio.get_running_loop().call_soon(self._refill)

    def _adapt(self) -> None:
        """Half as many places after a turn that was too long, one more after a short one."""
        now_s = self._clock()
        took_s, self._began_s = now_s - self._began_s, now_s
        if took_s > _LONG_TURN_S:
            self._most = max(1, self._most // 2)
        elif took_s < _SHORT_TURN_S:
            self._most = min(_MOST, self._most + 1)
