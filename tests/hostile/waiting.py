"""How long may a service take to get over an attack?"""

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait for a condition; False if it did not come true."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
