"""When does a scheduler that was told to stop do so? Once nothing is left to finish, or its time is over."""

import time

from pagewire.ipc.requests import RejectReason, Submit
from scheduler_service.core.admission import Refusal


class Drain:
    """The way to the end. `begin` may be called from a signal handler.

    Args:
        timeout_s: the longest that sequences are waited for; 0: not at all.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends_s: float | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun."""
        return self._ends_s is not None

    def begin(self) -> bool:
        """Let what is there end, and nothing new begin. False: there is no time for it, or it had begun before."""
        if self.is_under_way or not self._timeout_s:
            return False
        self._ends_s = time.monotonic() + self._timeout_s
        return True

    def remaining_s(self) -> float:
        """Seconds until its time is over; endless if it has not begun."""
        return float("inf") if self._ends_s is None else max(0.0, self._ends_s - time.monotonic())

    def refuse(self, submit: Submit) -> Refusal | None:
        """Why this request cannot begin here now, if so; one that was accepted elsewhere before goes on here."""
        if not self.is_under_way or submit.was_accepted:
            return None
        return Refusal(RejectReason.UNAVAILABLE, "", f"the engine {self.describe()}; send the request to another one")

    def describe(self) -> str:
        """What the engine does now; empty if it has not begun."""
        if not self.is_under_way:
            return ""
        return f"drains: it finishes what it has, in {self._timeout_s:g} s at most, and takes no new requests"

    def why_over(self, num_unfinished: int, *, has_workers: bool) -> str:
        """Why there is nothing to wait for any more; empty while there is.

        Args:
            num_unfinished: sequences that somebody waits for, or may come back for.
            has_workers: they can compute. Where they cannot, others finish the sequences sooner.
        """
        if not num_unfinished:
            return "all sequences have ended"
        if not has_workers:
            return f"its workers are gone, and {num_unfinished} sequences have to go on elsewhere"
        if not self.remaining_s():
            return f"its time of {self._timeout_s:g} s is over, and {num_unfinished} sequences have to go on elsewhere"
        return ""
