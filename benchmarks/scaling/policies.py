"""Which engine gets a request, of a thousand? The product's policy and others, over loads that are as old as they are in a
fleet.

`PrefixRouter` in scheduler_service/gateway/engines/routing.py is the product's; `BoundedPrefix` decides as it does, fast
enough for millions of requests, and a test compares the two.
"""

import enum
from collections.abc import Sequence
from random import Random

import numpy as np
import numpy.typing as npt

MAX_LOAD_FACTOR = 1.25
LOAD_SLACK_TOKENS = 4096
SEQUENCE_TOKENS = 256

Loads = npt.NDArray[np.float64]


class Policy(enum.StrEnum):
    """By name, as the tables say it."""

    RANDOM = "random"
    LEAST_LOADED = "least loaded"
    TWO_CHOICES = "two choices"
    PREFIX = "prefix"
    PREFIX_LEAST = "prefix, else least loaded"
    HASH = "hash of the conversation"


class Chooser:
    """Chooses among engines by number, by one policy."""

    def __init__(self, policy: Policy, random: Random) -> None:
        self._policy = policy
        self._random = random

    def choose(self, work: Loads, holders: Sequence[tuple[int, int]], conversation: int) -> int:
        """The engine for a prompt.

        Args:
            work: [num_engines] of each engine, in tokens, as the gateway believes it to be.
            holders: (engine, cached tokens) of those that are believed to have some of the prompt.
        """
        match self._policy:
            case Policy.RANDOM:
                return self._random.randrange(len(work))
            case Policy.LEAST_LOADED:
                return int(work.argmin())
            case Policy.TWO_CHOICES:
                return self._lighter_of_two(work)
            case Policy.HASH:
                return self._hashed(work, conversation)
            case Policy.PREFIX | Policy.PREFIX_LEAST:
                return self._where_cached(work, holders)

    def _where_cached(self, work: Loads, holders: Sequence[tuple[int, int]]) -> int:
        limit = _limit(work)
        free = [(cached, engine) for engine, cached in holders if cached and work[engine] <= limit]
        if free:
            return max(free)[1]
        return int(work.argmin()) if self._policy is Policy.PREFIX_LEAST else self._lighter_of_two(work)

    def _lighter_of_two(self, work: Loads) -> int:
        """Of two different engines: bounded or not, the lighter one is below the limit if either is."""
        first = self._random.randrange(len(work))
        if len(work) == 1:
            return first
        second = (first + 1 + self._random.randrange(len(work) - 1)) % len(work)
        return first if work[first] <= work[second] else second

    def _hashed(self, work: Loads, conversation: int) -> int:
        """The first engine that is not overloaded, in an order that the conversation alone decides."""
        limit = _limit(work)
        order = Random(conversation)
        engine = order.randrange(len(work))
        while work[engine] > limit:
            engine = order.randrange(len(work))
        return engine


def _limit(work: Loads) -> float:
    return MAX_LOAD_FACTOR * float(work.mean()) + LOAD_SLACK_TOKENS
