"""What is noted of one request while a benchmark runs?"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Trace:
    """When it was sent, and (time, tokens) of each message.

    Times are seconds of the machine's monotonic clock, which all its processes share.
    """

    sent_s: float
    messages: list[tuple[float, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Output tokens received."""
        return sum(count for _, count in self.messages)
