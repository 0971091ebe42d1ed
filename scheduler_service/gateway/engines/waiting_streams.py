"""Which streams does no engine run, and how long may they wait for one?"""

import time
from dataclasses import dataclass

from scheduler_service.gateway.exceptions import DeadlinePassedError, EngineUnavailableError, RequestError
from scheduler_service.gateway.stream import Stream


@dataclass(slots=True)
class RecoveryCounts:
    """How often a scheduler was lost, streams that were given to one again, and frames that made no sense."""

    num_losses: int = 0
    num_recovered: int = 0
    num_dropped: int = 0


class WaitingStreams:
    """Streams that no engine runs, and how long each has waited since its last token: engines that take it and are lost
    before it has another give it no more time.

    Args:
        timeout_s: longest wait of each stream.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting_since_s: dict[Stream, float] = {}
        # Of those that an engine took: how long they had waited, with how many tokens.
        self._waited_before: dict[Stream, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting_since_s)

    def add(self, stream: Stream) -> None:
        """No engine has it any more, or yet."""
        waited_s, num_tokens = self._waited_before.pop(stream, (0.0, stream.num_tokens))
        self._waiting_since_s[stream] = time.monotonic() - (waited_s if num_tokens == stream.num_tokens else 0.0)

    def take(self, stream: Stream) -> None:
        """An engine has it."""
        waited_s = time.monotonic() - self._waiting_since_s.pop(stream)
        self._waited_before[stream] = waited_s, stream.num_tokens

    def discard(self, stream: Stream) -> None:
        """It is over."""
        self._waiting_since_s.pop(stream, None)
        self._waited_before.pop(stream, None)

    def all(self) -> list[Stream]:
        """The streams that wait, longest wait first."""
        return sorted(self._waiting_since_s, key=self._waiting_since_s.__getitem__)

    def overdue(self) -> list[tuple[Stream, RequestError]]:
        """Streams that cannot wait any longer, each with what to tell its caller."""
        now_s, now_unix_s = time.monotonic(), time.time()
        late: list[tuple[Stream, RequestError]] = []
        for stream, since_s in self._waiting_since_s.items():
            if stream.deadline_s is not None and stream.deadline_s <= now_unix_s:
                late.append((stream, DeadlinePassedError()))
            elif now_s - since_s >= self._timeout_s:
                reason = f"no engine has the request, and none was ready within {self._timeout_s:g} s"
                late.append((stream, EngineUnavailableError(f"{reason}: send the request again or resume it")))
        return late
