"""How much work waits for its first turn, whether there is room for more, and when there will be?"""

import time
from collections import deque
from collections.abc import Callable

from pagewire.ipc.requests import RejectReason
from scheduler_service.core.admission import Refusal
from scheduler_service.core.config import SchedulerConfig

# Departures that the rate is measured on.
_MAX_DEPARTURES = 64
# Room for so large a part of the queue is worth coming back for.
_PART = 0.1
_MIN_RETRY_S, _MAX_RETRY_S, _UNKNOWN_RETRY_S = 0.1, 60.0, 1.0


class Backlog:
    """Requests that have never run, and their tokens; bounded, so that nobody waits for what will come too late.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = config.max_waiting_requests
        self._max_tokens = config.max_waiting_tokens
        self._clock = clock
        self._num_requests = 0
        self._num_tokens = 0
        # The last ones; before the first of a busy time, when that began.
        self._departures: deque[float] = deque(maxlen=_MAX_DEPARTURES)

    def refuse(self, num_tokens: int) -> Refusal | None:
        """Why a request of so many tokens finds no room now. An empty backlog takes any."""
        if self._num_requests >= self._max_requests:
            return self._full("max_waiting_requests", f"{self._num_requests} requests wait, and as many may")
        if self._num_requests and self._num_tokens + num_tokens > self._max_tokens:
            return self._full(
                "max_waiting_tokens",
                f"{self._num_requests} requests wait with {self._num_tokens} tokens, and {self._max_tokens} may",
            )
        return None

    def enter(self, num_tokens: int) -> None:
        """A request waits."""
        if not self._num_requests:
            self._departures.clear()
            self._departures.append(self._clock())
        self._num_requests += 1
        self._num_tokens += num_tokens

    def leave(self, num_tokens: int, *, to_run: bool) -> None:
        """It waits no more: it runs, or has ended before."""
        self._num_requests -= 1
        self._num_tokens -= num_tokens
        if to_run:
            self._departures.append(self._clock())

    @property
    def size(self) -> tuple[int, int]:
        """Requests and tokens."""
        return self._num_requests, self._num_tokens

    def _full(self, quota: str, message: str) -> Refusal:
        return Refusal(RejectReason.OVERLOADED, quota, message, self._retry_after_s())

    def _retry_after_s(self) -> float:
        """When a part of the queue will have left, at the rate of the last departures."""
        num_left = len(self._departures) - 1
        if num_left < 1:
            return _UNKNOWN_RETRY_S
        elapsed_s = self._clock() - self._departures[0]
        wanted = max(1.0, _PART * self._num_requests)
        return min(max(wanted * elapsed_s / num_left, _MIN_RETRY_S), _MAX_RETRY_S)
