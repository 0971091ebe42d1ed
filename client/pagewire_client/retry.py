"""When is a failed call tried again, or a broken stream resumed? On UNAVAILABLE, with exponential backoff, when the
server says when to come back, and when a server that ends has cut it."""

import random
import time
from dataclasses import dataclass

import grpc

from pagewire_client.errors import RequestError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits initial_backoff_s, then twice that and so on up to max_backoff_s, each plus or minus 20 %.

    The last of max_attempts failures in a row is raised. A stream that was accepted has more to lose, and somebody who
    reads it: it waits no longer than max_resume_backoff_s, and is given up after max_resume_attempts, half a minute,
    long enough for a gateway to start again. Output that comes begins the row anew.
    """

    max_attempts: int = 6
    max_resume_attempts: int = 64
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    max_resume_backoff_s: float = 0.5

    def backoff_s(self, num_failures: int, asked_s: float | None, *, resumes: bool = False) -> float:
        """How long to wait after this many failures; never less than the server asked for."""
        longest = min(self.max_backoff_s, self.max_resume_backoff_s) if resumes else self.max_backoff_s
        backoff = min(self.initial_backoff_s * 2.0 ** (num_failures - 1), longest)
        return max(backoff * random.uniform(0.8, 1.2), asked_s or 0.0)  # noqa: S311 (jitter, not a secret)


NO_RETRY = RetryPolicy(max_attempts=1, max_resume_attempts=1)


class Attempts:
    """The attempts of one call under one deadline."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None) -> None:
        self._policy = policy
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._num_failures = 0

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def made_progress(self) -> None:
        """Output came: failures before it are forgiven."""
        self._num_failures = 0

    def wait_after(self, error: RequestError, *, resumes: bool = False) -> float:
        """Seconds to wait before trying again, or before resuming.

        Raises:
            RequestError: the given error, if it is final, attempts are used up, or the deadline comes first.
        """
        self._num_failures += 1
        most = self._policy.max_resume_attempts if resumes else self._policy.max_attempts
        if not _is_temporary(error) or self._num_failures >= most:
            raise error
        wait_s = self._policy.backoff_s(self._num_failures, error.details.retry_delay_s, resumes=resumes)
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= wait_s:
            raise error
        return wait_s


# What a call ends with that crosses the word of a gRPC server that it takes no more. One that is cancelled on this side
# says so in other words.
_CUT = (grpc.StatusCode.CANCELLED, "CANCELLED")


def _is_temporary(error: RequestError) -> bool:
    """Whether the same call may succeed later. A server whose queue is full says when; other exhaustion is final."""
    is_full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.details.retry_delay_s is not None
    return is_full or error.code is grpc.StatusCode.UNAVAILABLE or (error.code, error.message) == _CUT
