"""Which waiting sequence is next? Higher priorities first, tenants by service within one, and nobody is left out.

Of all turns one in `SHARE_OF_TURNS` belongs to a lower priority than the highest that waits: to the one that has gone
without a turn for longest. So with L priorities waiting each gets one turn of L * SHARE_OF_TURNS, however many requests
of higher ones come. A sequence whose turn it is keeps it until there is room for it.

Within a priority sequences that were preempted come first: their callers are in the middle of a stream. Of the others
the tenant is next that has had the least service; see tenant_service.py.
"""

from scheduler_service.core.sequence import Sequence
from scheduler_service.core.tenant_service import TenantService
from scheduler_service.core.waiting_queue import WaitingQueue

SHARE_OF_TURNS = 8
"""One turn of so many goes to lower priorities."""

# Priorities of which something is remembered though nobody of them waits.
_MAX_LEVELS = 64


class FairQueue:
    """Waiting sequences by priority, tenant and arrival."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._num_turns = 0
        self._chosen: _Level | None = None

    def push(self, sequence: Sequence) -> None:
        """Queue a WAITING sequence; one that was preempted comes back before those that have not run."""
        level = self._levels.get(sequence.priority)
        if level is None:
            self._forget_idle()
            level = self._levels[sequence.priority] = _Level(sequence.priority)
        if level.is_empty:
            level.last_turn = self._num_turns
        level.push(sequence)

    def peek(self) -> Sequence | None:
        """The next sequence, or None."""
        waiting = [level for level in self._levels.values() if not level.is_empty]
        if not waiting:
            return None
        self._chosen = max(waiting, key=_priority)
        if len(waiting) > 1 and (self._num_turns + 1) % SHARE_OF_TURNS == 0:
            waiting.remove(self._chosen)
            self._chosen = min(waiting, key=_last_turn)
        return self._chosen.peek()

    def pop(self) -> None:
        """Take away what `peek` returned."""
        assert self._chosen is not None
        self._chosen.pop()

    def note_turn(self, sequence: Sequence) -> None:
        """A sequence that was taken away got its slot."""
        self._num_turns += 1
        level = self._levels.get(sequence.priority)
        if level is not None:
            level.last_turn = self._num_turns
            level.service.charge(sequence)

    def charge(self, sequence: Sequence) -> None:
        """Count the service that the sequence has had since the last call as its tenant's."""
        level = self._levels.get(sequence.priority)
        if level is not None:
            level.service.charge(sequence)

    @property
    def is_contended(self) -> bool:
        """Whether tenants wait for each other, so that it matters who has had how much."""
        return any(len(level.lines) > 1 for level in self._levels.values())

    def note_over(self, sequence: Sequence) -> None:
        """One of the sequences has ended."""
        self._levels[sequence.priority].note_over(sequence)

    def clear(self) -> None:
        """Let all go; what tenants have had is remembered."""
        for level in self._levels.values():
            level.returning = WaitingQueue()
            level.lines.clear()

    def live(self) -> list[Sequence]:
        """All waiting sequences, in no order."""
        return [sequence for level in self._levels.values() for sequence in level.live()]

    def _forget_idle(self) -> None:
        idle = sorted((level for level in self._levels.values() if level.is_empty), key=_last_turn)
        for level in idle[: max(0, len(self._levels) + 1 - _MAX_LEVELS)]:
            del self._levels[level.priority]


class _Level:
    """Sequences of one priority. `last_turn` counts all turns until its own last one, or until it began to wait."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.last_turn = 0
        self.returning = WaitingQueue()
        self.lines: dict[str, WaitingQueue] = {}
        self.service = TenantService()
        self._next = self.returning
        self._next_tenant: str | None = None

    @property
    def is_empty(self) -> bool:
        return not self.lines and not len(self.returning)

    def push(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is not None:
            self.returning.push(sequence)
            return
        line = self.lines.get(sequence.tenant)
        if line is None:
            self.service.lift(sequence.tenant, self.lines)
            line = self.lines[sequence.tenant] = WaitingQueue()
        line.push(sequence)

    def peek(self) -> Sequence | None:
        if len(self.returning):
            self._next, self._next_tenant = self.returning, None
        else:
            self._next_tenant = self.service.least(self.lines)
            self._next = self.lines[self._next_tenant]
        return self._next.peek()

    def pop(self) -> None:
        self._next.pop()
        if self._next_tenant is not None and not len(self._next):
            del self.lines[self._next_tenant]

    def note_over(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is not None:
            self.returning.note_over()
            return
        line = self.lines[sequence.tenant]
        line.note_over()
        if not len(line):
            del self.lines[sequence.tenant]

    def live(self) -> list[Sequence]:
        return self.returning.live() + [sequence for line in self.lines.values() for sequence in line.live()]


def _priority(level: _Level) -> int:
    return level.priority


def _last_turn(level: _Level) -> int:
    return level.last_turn
