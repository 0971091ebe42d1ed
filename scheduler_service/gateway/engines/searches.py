"""Which engine has the sequence of a request that its caller resumes? All are asked; the first that has it is taken."""

import time
from dataclasses import dataclass

from pagewire.ipc.requests import Located
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.stream import Stream

_TIMEOUT_S = 1.0


@dataclass(slots=True)
class _Search:
    stream: Stream
    asked: set[Engine]
    ends_s: float


class Searches:
    """Streams that no engine has yet, because it is not known which one has their sequences."""

    def __init__(self) -> None:
        self._searches: dict[int, _Search] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._searches)

    def begin(self, stream: Stream, engines: list[Engine]) -> bool:
        """Ask all engines. False: there is none to ask."""
        self._last_number += 1
        asked = {engine for engine in engines if engine.locate(self._last_number, stream.generation.request_id)}
        if asked:
            self._searches[self._last_number] = _Search(stream, asked, time.monotonic() + _TIMEOUT_S)
        return bool(asked)

    def take(self, engine: Engine, located: Located) -> tuple[Stream, Engine | None] | None:
        """An engine has answered. Returns the stream and its engine, if any, once that is known."""
        search = self._searches.get(located.number)
        if search is None:
            return None
        search.asked.discard(engine)
        if search.asked and not located.is_here:
            return None
        del self._searches[located.number]
        return search.stream, engine if located.is_here else None

    def lose(self, engine: Engine) -> list[Stream]:
        """An engine will not answer; returns the streams of which nobody else may have the sequence."""
        for search in self._searches.values():
            search.asked.discard(engine)
        lost = {number: search.stream for number, search in self._searches.items() if not search.asked}
        for number in lost:
            del self._searches[number]
        return list(lost.values())

    def overdue(self) -> list[Stream]:
        """Streams that nobody has claimed in time; they are searched for no longer."""
        now_s = time.monotonic()
        late = {number: search.stream for number, search in self._searches.items() if search.ends_s <= now_s}
        for number in late:
            del self._searches[number]
        return list(late.values())

    def discard(self, stream: Stream) -> None:
        """The stream needs no engine any more."""
        self._searches = {number: search for number, search in self._searches.items() if search.stream is not stream}

    def all(self) -> list[Stream]:
        """The streams."""
        return [search.stream for search in self._searches.values()]
