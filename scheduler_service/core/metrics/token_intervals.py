"""How long did each sequence wait for its next token? Told for a whole step at once.

While the same slots draw in step after step, which is nearly always, all of them waited for the same time: the time
of the last such step is kept once, and put into the slots' own column only when something changes.
"""

import numpy as np

from scheduler_service.core.metrics.histogram import FloatArray, Histogram
from scheduler_service.core.slot_table import IntArray

_NEVER = float("nan")
_NO_SLOTS: IntArray = np.zeros(0, dtype=np.int32)


class TokenIntervals:
    """Time between two tokens of a sequence, by slot."""

    def __init__(self, num_slots: int, histogram: Histogram) -> None:
        self._histogram = histogram
        self._last_s: FloatArray = np.full(num_slots, _NEVER)
        # These drew in the last step; what _last_s says of them is old.
        self._drew: IntArray = _NO_SLOTS
        self._drew_key = b""
        self._drew_s = 0.0

    def take_slot(self, slot: int, last_token_s: float | None) -> None:
        """Another sequence has the slot; `last_token_s`: when it drew before, in another slot."""
        self._settle()
        self._last_s[slot] = _NEVER if last_token_s is None else last_token_s

    def leave_slot(self, slot: int) -> float | None:
        """The slot's sequence counts no more: when did it last draw, if it did?"""
        self._settle()
        last_s = float(self._last_s[slot])
        self._last_s[slot] = _NEVER
        return None if last_s != last_s else last_s

    def note_step(self, slots: IntArray, key: bytes, now_s: float) -> list[int]:
        """These slots, whose bytes are `key`, drew a token. Gives the places of those who had none to count from."""
        first: list[int] = []
        if key == self._drew_key:
            self._histogram.observe(now_s - self._drew_s, len(slots))
        else:
            self._settle()
            intervals = now_s - self._last_s[slots]
            is_first = np.isnan(intervals)
            first = np.flatnonzero(is_first).tolist()
            self._histogram.observe_all(intervals[~is_first])
            self._drew, self._drew_key = slots, key
        self._drew_s = now_s
        return first

    def _settle(self) -> None:
        self._last_s[self._drew] = self._drew_s
        self._drew, self._drew_key = _NO_SLOTS, b""
