"""Has a tenant used up what its key allows? Requests at once, requests per minute, tokens per minute.

Rates are token buckets of one minute's worth. A request needs a token left, not all that it will use: prompt and output
are taken as they come and may run into debt, which later requests wait out. So no request is too large to be ever run,
and nothing is held for output that never comes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scheduler_service.gateway.auth.caller import Caller
from scheduler_service.gateway.exceptions import QuotaExceededError

# Nobody knows when a running request ends.
_RETRY_BUSY_S = 1.0


class Bucket:
    """So much a minute, and at most a minute's worth saved up. Begins full."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    def refill(self, per_minute: int, now_s: float) -> None:
        """Add what has come since the last time, at a rate that may have changed."""
        gained = (now_s - self._filled_s) * per_minute / 60
        self._level = min(self._level + gained, float(per_minute))
        self._per_minute, self._filled_s = per_minute, now_s

    def wait_s(self) -> float:
        """How long until one can be taken; 0: now."""
        return max(0.0, 1 - self._level) * 60 / self._per_minute

    def take(self, count: int) -> None:
        """Take so many, whether they are there or not."""
        self._level -= count


class _Tenant:
    """What one tenant uses."""

    def __init__(self) -> None:
        self.num_open = 0
        self.buckets: dict[str, Bucket] = {}

    def bucket(self, quota: str, per_minute: int | None, now_s: float) -> Bucket | None:
        """The bucket of a quota, filled up to now; None if there is no limit."""
        if per_minute is None:
            self.buckets.pop(quota, None)
            return None
        bucket = self.buckets.setdefault(quota, Bucket(per_minute, now_s))
        bucket.refill(per_minute, now_s)
        return bucket


class Quotas:
    """What all tenants use of this gateway.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    @contextmanager
    def one(self, caller: Caller) -> Iterator[Callable[[int], None]]:
        """Around one request. Gives what is told of its tokens, of prompt and output alike.

        Raises:
            QuotaExceededError: the tenant has no more; the message says until when.
        """
        tenant = self._tenants.setdefault(caller.tenant, _Tenant())
        tokens = self._admit(caller, tenant)
        tenant.num_open += 1
        try:
            yield _ignore if tokens is None else tokens.take
        finally:
            tenant.num_open -= 1

    def _admit(self, caller: Caller, tenant: _Tenant) -> Bucket | None:
        limits, now_s = caller.limits, self._clock()
        most = limits.max_concurrent_requests
        if most is not None and tenant.num_open >= most:
            raise QuotaExceededError(caller.tenant, "max_concurrent_requests", most, _RETRY_BUSY_S)
        requests = tenant.bucket("requests_per_minute", limits.requests_per_minute, now_s)
        tokens = tenant.bucket("tokens_per_minute", limits.tokens_per_minute, now_s)
        for quota, bucket, per_minute in (
            ("requests_per_minute", requests, limits.requests_per_minute),
            ("tokens_per_minute", tokens, limits.tokens_per_minute),
        ):
            if bucket is not None and per_minute is not None and (wait_s := bucket.wait_s()):
                raise QuotaExceededError(caller.tenant, quota, per_minute, wait_s)
        if requests is not None:
            requests.take(1)
        return tokens


def _ignore(_num_tokens: int) -> None:
    return None
