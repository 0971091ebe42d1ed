"""Sequences that wait in one line: by priority, then first come first."""

import heapq

from scheduler_service.core.sequence import Sequence


class WaitingQueue:
    """A heap by priority, then arrival. Sequences that end while they wait are dropped when they come up, or before
    they are more than the others: those behind higher priorities may never come up.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._num_over = 0

    def push(self, sequence: Sequence) -> None:
        """Queue a WAITING sequence; a preempted one comes back to its old place."""
        heapq.heappush(self._heap, (sequence.order, sequence))

    def __len__(self) -> int:
        """Sequences that wait."""
        return len(self._heap) - self._num_over

    def peek(self) -> Sequence | None:
        """The next sequence, or None."""
        while self._heap and self._heap[0][1].is_over:
            heapq.heappop(self._heap)
            self._num_over -= 1
        return self._heap[0][1] if self._heap else None

    def pop(self) -> None:
        """Take away what `peek` returned."""
        heapq.heappop(self._heap)

    def note_over(self) -> None:
        """One of the sequences has ended."""
        self._num_over += 1
        if 2 * self._num_over > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[1].is_over]
            heapq.heapify(self._heap)
            self._num_over = 0

    def live(self) -> list[Sequence]:
        """All waiting sequences, in no order."""
        return [sequence for _, sequence in self._heap if not sequence.is_over]
