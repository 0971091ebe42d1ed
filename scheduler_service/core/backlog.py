"""How much work waits for its first turn, whether there is room for more, and when there will be?

A tenant alone may have all the room. Once it is full, what others bring is still taken while they hold less than their
equal share of it: then those who hold more are refused until the room has emptied. So the room is never more than twice
as full as it may be, and nobody loses what was accepted.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pagewire.ipc.requests import RejectReason
from scheduler_service.core.admission import Refusal
from scheduler_service.core.config import SchedulerConfig

# Departures that the rate is measured on.
_MAX_DEPARTURES = 64
# Room for so large a part of the queue is worth coming back for.
_PART = 0.1
_MIN_RETRY_S, _MAX_RETRY_S, _UNKNOWN_RETRY_S = 0.1, 60.0, 1.0


@dataclass(slots=True)
class _Held:
    """What one tenant has in the room."""

    num_requests: int = 0
    num_tokens: int = 0


class Backlog:
    """Requests that have never run, and their tokens; bounded, so that nobody waits for what will come too late.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = config.max_waiting_requests
        self._max_tokens = config.max_waiting_tokens
        self._max_seqs = config.max_num_seqs
        self._clock = clock
        self._num_requests = 0
        self._num_tokens = 0
        self._held: dict[str, _Held] = {}
        # The last ones; before the first of a busy time, when that began.
        self._departures: deque[float] = deque(maxlen=_MAX_DEPARTURES)

    def refuse(self, num_tokens: int, tenant: str = "") -> Refusal | None:
        """Why a request of so many tokens finds no room now. An empty backlog takes any."""
        over = self._limit_passed(num_tokens, 1)
        if over is None or (not self._limit_passed(num_tokens, 2) and self._is_below_share(num_tokens, tenant)):
            return None
        return self._full(over, tenant)

    def refuse_resumed(self, num_tokens: int, tenant: str = "") -> Refusal | None:
        """The same for one that its caller says was accepted before, by who ran or queued it and is gone.

        There is as much room again for those, which nobody can tell from others, as there were who may say so.
        """
        over = self._limit_passed(num_tokens, 2, self._max_seqs)
        return None if over is None else self._full(over, tenant)

    def enter(self, num_tokens: int, tenant: str = "") -> None:
        """A request waits."""
        if not self._num_requests:
            self._departures.clear()
            self._departures.append(self._clock())
        self._num_requests += 1
        self._num_tokens += num_tokens
        held = self._held.setdefault(tenant, _Held())
        held.num_requests += 1
        held.num_tokens += num_tokens

    def leave(self, num_tokens: int, tenant: str = "", *, to_run: bool) -> None:
        """It waits no more: it runs, or has ended before."""
        self._num_requests -= 1
        self._num_tokens -= num_tokens
        held = self._held[tenant]
        held.num_requests -= 1
        held.num_tokens -= num_tokens
        if not held.num_requests:
            del self._held[tenant]
        if to_run:
            self._departures.append(self._clock())

    @property
    def size(self) -> tuple[int, int]:
        """Requests and tokens."""
        return self._num_requests, self._num_tokens

    def _limit_passed(self, num_tokens: int, times: int, num_more: int = 0) -> str | None:
        """The limit, so many times itself and so many requests more, that one more request would pass."""
        if self._num_requests >= times * self._max_requests + num_more:
            return "max_waiting_requests"
        if self._num_requests and self._num_tokens + num_tokens > times * self._max_tokens:
            return "max_waiting_tokens"
        return None

    def _is_below_share(self, num_tokens: int, tenant: str) -> bool:
        """Whether the tenant, with one more request, has at most its share of a room that others are in too."""
        num_tenants = len(self._held.keys() | {tenant})
        held = self._held.get(tenant, _NOTHING)
        if num_tenants == 1 or not held.num_requests:
            return num_tenants > 1
        return (held.num_requests + 1) * num_tenants <= self._max_requests and (
            held.num_tokens + num_tokens
        ) * num_tenants <= self._max_tokens

    def _full(self, quota: str, tenant: str) -> Refusal:
        if quota == "max_waiting_requests":
            message = f"{self._num_requests} requests wait, and {self._max_requests} may"
        else:
            message = f"{self._num_requests} requests wait with {self._num_tokens} tokens, and {self._max_tokens} may"
        if len(self._held.keys() | {tenant}) > 1:
            message += f"; {self._held.get(tenant, _NOTHING).num_requests} of the requests are this tenant's"
        return Refusal(RejectReason.OVERLOADED, quota, message, self._retry_after_s())

    def _retry_after_s(self) -> float:
        """When a part of the queue will have left, at the rate of the last departures."""
        num_left = len(self._departures) - 1
        if num_left < 1:
            return _UNKNOWN_RETRY_S
        elapsed_s = self._clock() - self._departures[0]
        wanted = max(1.0, _PART * self._num_requests)
        return min(max(wanted * elapsed_s / num_left, _MIN_RETRY_S), _MAX_RETRY_S)


_NOTHING = _Held()
