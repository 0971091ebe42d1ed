"""How long do tests wait for what must happen? Until nobody can believe any more that it will."""

import time
from collections.abc import Callable

from pagewire_client import RetryPolicy

PATIENCE_S = 240.0
"""A slow machine that others use as well may take seconds for what takes milliseconds, and a minute for a start."""

PATIENT = RetryPolicy(max_attempts=200, max_resume_attempts=200)
"""For clients of a service whose processes are killed: that they start again in time is a matter of the machine."""


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until something is so, which must happen."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)
    return True
