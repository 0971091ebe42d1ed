"""When did what happen to one sequence, and how did it end?"""

import enum
from dataclasses import dataclass


class Outcome(enum.StrEnum):
    """How a sequence ended: the first two are successes."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def is_success(self) -> bool:
        """Whether the caller has all that was asked for."""
        return self in (Outcome.STOP, Outcome.LENGTH)


@dataclass(slots=True)
class Times:
    """Monotonic seconds. `admitted_s`: when it first got a slot."""

    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
