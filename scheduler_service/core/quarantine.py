"""Which sequence kills the worker? Deaths are held against those they interrupt, until suspects run alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler_service.core.sequence import Sequence

# In flight at so many deaths without getting past the place: run alone from then on.
_SUSPECT_FROM = 2
# Requests that are over and are remembered, in case that they come again; the oldest are forgotten.
_MAX_REMEMBERED = 1024


@dataclass(slots=True)
class _Record:
    """Deaths that a sequence has not got past, and the most tokens it would have had computed at any of them."""

    num_deaths: int
    reach: int
    is_condemned: bool = False


class Quarantine:
    """Counts, per sequence, the worker deaths that interrupted it, until it gets past the place where it was.

        1st death   everyone in flight is noted
        2nd death   who is in flight again, and has not got past in between, is a suspect: suspects run one at a time
        3rd death   the suspect that ran alone is condemned; nobody else was in flight

    A poisonous sequence is in flight at every death it causes and never gets past the place, so it costs three
    restarts, however many others were in flight. (Halving the suspects instead of running them one by one would cost
    one restart for every halving that holds it.) An innocent suspect is cleared by the first result that reaches as far
    as it was, and somebody who kills workers at random condemns nobody who makes progress.

    What is held against a request outlives its sequence: who resumes it elsewhere does not start from nothing.
    """

    def __init__(self) -> None:
        self._records: dict[Sequence, _Record] = {}
        self._suspects: set[Sequence] = set()
        self._remembered: dict[str, _Record] = {}

    def __bool__(self) -> bool:
        """Whether anything is held against anyone."""
        return bool(self._records)

    @property
    def has_suspects(self) -> bool:
        """Whether only suspects may run, one at a time."""
        return bool(self._suspects)

    def is_suspect(self, sequence: Sequence) -> bool:
        """Whether the sequence may only run alone."""
        return sequence in self._suspects

    def admit(self, sequence: Sequence) -> bool:
        """Take up what is held against a new sequence's request; False: it was condemned."""
        record = self._remembered.pop(sequence.request_id, None)
        if record is None:
            return True
        self._records[sequence] = record
        if record.num_deaths >= _SUSPECT_FROM:
            self._suspects.add(sequence)
        return not record.is_condemned

    def note_death(self, reaches: Mapping[Sequence, int]) -> list[Sequence]:
        """The worker died; returns the condemned.

        Args:
            reaches: for each sequence in a step that was sent and not answered, its computed tokens after that step.
        """
        condemned = [sequence for sequence in reaches if sequence in self._suspects]
        for sequence, reach in reaches.items():
            record = self._records.setdefault(sequence, _Record(0, 0))
            record.num_deaths += 1
            record.reach = max(record.reach, reach)
            record.is_condemned = sequence in condemned
            if record.num_deaths >= _SUSPECT_FROM:
                self._suspects.add(sequence)
        return condemned

    def note_progress(self, sequence: Sequence, num_computed: int) -> bool:
        """A step's result came: so many of the sequence's tokens are computed. Whether that clears a suspect."""
        record = self._records.get(sequence)
        if record is None or num_computed < record.reach:
            return False
        was_suspect = sequence in self._suspects
        del self._records[sequence]
        self._suspects.discard(sequence)
        return was_suspect

    def leave(self, sequence: Sequence) -> None:
        """The sequence is over, before it got past the place or after."""
        record = self._records.pop(sequence, None)
        self._suspects.discard(sequence)
        if record is not None:
            self._remembered[sequence.request_id] = record
            if len(self._remembered) > _MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
