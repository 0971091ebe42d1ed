"""Sequences that wait for a slot, in the order in which they may have one."""

import heapq

from scheduler_service.core.sequence import Sequence


class WaitingQueue:
    """A heap by priority, then arrival. Sequences that end while they wait are dropped when they come up."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []

    def push(self, sequence: Sequence) -> None:
        """Queue a WAITING sequence; a preempted one comes back to its old place."""
        heapq.heappush(self._heap, (sequence.order, sequence))

    def peek(self) -> Sequence | None:
        """The next sequence, or None."""
        while self._heap and self._heap[0][1].is_over:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> None:
        """Take away what `peek` returned."""
        heapq.heappop(self._heap)

    def live(self) -> list[Sequence]:
        """All waiting sequences, in no order."""
        return [sequence for _, sequence in self._heap if not sequence.is_over]
