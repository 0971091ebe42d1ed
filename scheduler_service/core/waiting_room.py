"""Who waits for a slot, and who is next?"""

from collections.abc import Callable, Iterable

from scheduler_service.core.backlog import Backlog
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.fair_queue import FairQueue
from scheduler_service.core.quarantine import Quarantine
from scheduler_service.core.sequence import Sequence
from scheduler_service.core.waiting_queue import WaitingQueue

# Each costs a look at the prefix cache in every step.
_MOST_ASIDE = 32


class WaitingRoom:
    """Sequences without a slot. While there are suspects of having killed a worker, each runs alone, and others wait.

    Attributes:
        quarantine: knows the suspects; `sort` follows it.
        backlog: those that have never had a slot.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.quarantine = Quarantine()
        self.backlog = Backlog(config)
        self._queue = FairQueue()
        self._suspects = WaitingQueue()
        self._aside: list[Sequence] = []

    def note_told(self, request_id: str, num_deaths: int, reach: int) -> None:
        """A request comes from other engines, whose workers died under it."""
        if self.quarantine.note_told(request_id, num_deaths, reach):
            self.sort()

    def push(self, sequence: Sequence) -> None:
        """A WAITING sequence takes its place, a preempted one its old place."""
        self._queue_of(sequence).push(sequence)

    def next(self, num_slots: int, num_free: int) -> Sequence | None:
        """The sequence whose turn it is, if there is one, given how many slots there are and are free."""
        if len(self._aside) >= min(_MOST_ASIDE, num_free):
            return None
        if not self.quarantine.has_suspects:
            return self._queue.peek()
        return self._suspects.peek() if num_free == num_slots else None

    def set_aside(self, sequence: Sequence) -> None:
        """The one whose turn it was had better wait a little, and lets others pass. It keeps a slot for itself."""
        self._queue_of(sequence).pop()
        self._aside.append(sequence)

    def bring_back(self) -> None:
        """Who was set aside takes the old place again."""
        for sequence in self._aside:
            self.push(sequence)
        self._aside.clear()

    def take(self, sequence: Sequence) -> None:
        """The one whose turn it was got a slot."""
        self._queue_of(sequence).pop()
        self._queue.note_turn(sequence)

    def charge(self, running: Callable[[], Iterable[Sequence]]) -> None:
        """Count what these have been served so far, if it matters who is next."""
        if self._queue.is_contended:
            for sequence in running():
                self._queue.charge(sequence)

    def note_end(self, sequence: Sequence) -> None:
        """A sequence ended, running or not."""
        self._queue.charge(sequence)

    def note_over(self, sequence: Sequence) -> None:
        """A sequence ended while it waited."""
        if self.quarantine.is_suspect(sequence.request_id):
            self._suspects.note_over()
        else:
            self._queue.note_over(sequence)

    def sort(self) -> None:
        """Who is a suspect has changed: have every sequence wait where it belongs."""
        waiting = self.live()
        self._queue.clear()
        self._suspects = WaitingQueue()
        for sequence in waiting:
            self.push(sequence)

    def live(self) -> list[Sequence]:
        """All that wait, in no order."""
        return self._queue.live() + self._suspects.live()

    def _queue_of(self, sequence: Sequence) -> FairQueue | WaitingQueue:
        return self._suspects if self.quarantine.is_suspect(sequence.request_id) else self._queue
