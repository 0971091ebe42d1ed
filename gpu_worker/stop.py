"""When does a worker that was told to stop do so? At once, or when the scheduler that it computes for is gone."""

import signal
import time
from types import FrameType


class Stop:
    """The word to stop, which signals bring.

    Args:
        drain_timeout_s: the longest that a worker goes on after SIGTERM for a scheduler that drains; 0: not at all.
    Attributes:
        is_computing: the worker can take steps. One that only starts ends at once.
    """

    def __init__(self, drain_timeout_s: float = 0.0) -> None:
        self.is_computing = False
        self._drain_timeout_s = drain_timeout_s
        self._ends_s: float | None = None

    def take_signal(self, signum: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT. The latter, or a second one, ends the worker at once.

        Raises:
            SystemExit: that is the case.
        """
        if signum != signal.SIGTERM or self._ends_s is not None or not (self.is_computing and self._drain_timeout_s):
            raise SystemExit(0)
        self._ends_s = time.monotonic() + self._drain_timeout_s

    def check(self, *, has_scheduler: bool) -> None:
        """Go on, if there is still somebody to compute for, and time.

        Raises:
            SystemExit: it was told to stop, and there is not.
        """
        if self._ends_s is not None and (not has_scheduler or time.monotonic() >= self._ends_s):
            raise SystemExit(0)
