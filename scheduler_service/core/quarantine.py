"""Which sequence kills the worker? Deaths are held against those they interrupt, until suspects run alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler_service.core.sequence import Sequence

# In flight at so many deaths without getting past the place: run alone from then on.
_SUSPECT_FROM = 2


@dataclass(slots=True)
class _Record:
    """Deaths that a sequence has not got past, and the most tokens it would have had computed at any of them."""

    num_deaths: int
    reach: int


class Quarantine:
    """Counts, per sequence, the worker deaths that interrupted it, until it gets past the place where it was.

        1st death   everyone in flight is noted
        2nd death   who is in flight again, and has not got past in between, is a suspect: suspects run one at a time
        3rd death   the suspect that ran alone is condemned; nobody else was in flight

    A poisonous sequence is in flight at every death it causes and never gets past the place, so it costs three
    restarts, however many others were in flight. (Halving the suspects instead of running them one by one would cost
    one restart for every halving that holds it.) An innocent suspect is cleared by the first result that reaches as far
    as it was, and somebody who kills workers at random condemns nobody who makes progress.
    """

    def __init__(self) -> None:
        self._records: dict[Sequence, _Record] = {}
        self._suspects: set[Sequence] = set()

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
            if record.num_deaths >= _SUSPECT_FROM:
                self._suspects.add(sequence)
        return condemned

    def note_progress(self, sequence: Sequence, num_computed: int) -> bool:
        """A step's result came: so many of the sequence's tokens are computed. Whether that clears a suspect."""
        record = self._records.get(sequence)
        if record is None or num_computed < record.reach:
            return False
        was_suspect = sequence in self._suspects
        self.forget(sequence)
        return was_suspect

    def forget(self, sequence: Sequence) -> None:
        """The sequence got past the place, or is over."""
        self._records.pop(sequence, None)
        self._suspects.discard(sequence)
