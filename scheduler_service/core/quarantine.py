"""Which request kills the worker? Deaths are held against those they interrupt, until suspects run alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# In flight at so many deaths without getting past the place: run alone from then on.
_SUSPECT_FROM = 2
# And so many while it ran alone, the last time: it is not run again.
_CONDEMNED_FROM = 3
# Requests of which a death is remembered; the oldest that are over are forgotten.
_MAX_RECORDS = 1024


@dataclass(slots=True)
class _Record:
    """Deaths that a request has not got past, and the most tokens it would have had computed at any of them."""

    num_deaths: int
    reach: int
    is_condemned: bool


class Quarantine:
    """Counts, per request, the worker deaths that interrupted it, until it gets past the place where it was.

        1st death   everyone in flight is noted
        2nd death   who is in flight again, and has not got past in between, is a suspect: suspects run one at a time
        3rd death   the suspect that ran alone is condemned; nobody else was in flight

    A poisonous request is in flight at every death it causes and never gets past the place, so it costs three
    restarts, however many others were in flight. (Halving the suspects instead of running them one by one would cost
    one restart for every halving that holds it.) An innocent suspect is cleared by the first result that reaches as far
    as it was, and somebody who kills workers at random condemns nobody who makes progress.

    What is held against a request outlives its sequence, and its gateway tells other engines of it (`note_told`):
    resumed elsewhere, it does not start from nothing.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._suspects: set[str] = set()
        self._live: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether anything is held against anyone."""
        return bool(self._records)

    @property
    def has_suspects(self) -> bool:
        """Whether only suspects may run, one at a time."""
        return not self._suspects.isdisjoint(self._live)

    @property
    def num_suspects(self) -> int:
        """Requests that may only run alone, whether they are here now or not."""
        return len(self._suspects)

    def is_suspect(self, request_id: str) -> bool:
        """Whether the request may only run alone."""
        return request_id in self._suspects

    def note_told(self, request_id: str, num_deaths: int, reach: int) -> bool:
        """Workers of other engines died under the request; once it gets as far as this, that is forgotten.

        Returns whether that makes it a suspect, which it was not.
        """
        record = self._records.setdefault(request_id, _Record(0, 0, is_condemned=False))
        record.num_deaths = max(record.num_deaths, num_deaths)
        record.reach = max(record.reach, reach)
        record.is_condemned |= num_deaths >= _CONDEMNED_FROM
        was_suspect = request_id in self._suspects
        if record.num_deaths >= _SUSPECT_FROM:
            self._suspects.add(request_id)
        self._forget_oldest()
        return not was_suspect and request_id in self._suspects

    def admit(self, request_id: str) -> bool:
        """The request has a sequence, or one more, now. False: it was condemned before."""
        self._live[request_id] += 1
        record = self._records.get(request_id)
        return record is None or not record.is_condemned

    def leave(self, request_id: str) -> None:
        """A sequence of the request is over."""
        self._live[request_id] -= 1
        if not self._live[request_id]:
            del self._live[request_id]

    def note_death(self, reaches: Mapping[str, int]) -> list[str]:
        """The worker died; returns the condemned.

        Args:
            reaches: for each request in a step that was sent and not answered, its computed tokens after that step.
        """
        condemned = [request_id for request_id in reaches if request_id in self._suspects]
        for request_id, reach in reaches.items():
            record = self._records.setdefault(request_id, _Record(0, 0, is_condemned=False))
            record.num_deaths += 1
            record.reach = max(record.reach, reach)
            record.is_condemned = request_id in self._suspects
        self._suspects = {key for key, record in self._records.items() if record.num_deaths >= _SUSPECT_FROM}
        self._forget_oldest()
        return condemned

    def note_progress(self, request_id: str, num_computed: int) -> bool:
        """A step's result came: so many of the request's tokens are computed. Whether that clears a suspect."""
        record = self._records.get(request_id)
        if record is None or num_computed < record.reach:
            return False
        was_suspect = request_id in self._suspects
        del self._records[request_id]
        self._suspects.discard(request_id)
        return was_suspect

    def _forget_oldest(self) -> None:
        over = [request_id for request_id in self._records if request_id not in self._live]
        for request_id in over[: max(0, len(self._records) - _MAX_RECORDS)]:
            del self._records[request_id]
            self._suspects.discard(request_id)
