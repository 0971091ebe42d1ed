"""Which engine gets a request, of a thousand? The product's policy and others, over loads as old as those of a fleet.

The product's is `PrefixRouter` in scheduler_service/gateway/engines/routing.py. `Chooser` decides as it does, fast
enough for millions of requests, and a test compares the two.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from scheduler_service.gateway.engines.engine_load import SEQUENCE_TOKENS
from scheduler_service.gateway.engines.routing import CACHED_TOKEN_VALUE, LOAD_SLACK, MAX_LOAD_FACTOR

Floats = npt.NDArray[np.float64]
_NUM_TRIES = 16


class Policy(enum.StrEnum):
    """By name, as the tables say it."""

    RANDOM = "random"
    LEAST_LOADED = "least loaded"
    TWO_CHOICES = "two choices"
    PREFIX = "prefix"
    PREFIX_OF_ALL = "prefix, best of all"
    HASH = "hash of the conversation"


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What a gateway believes of its engines. sequences, tokens: [num_engines], not ended and still to be computed."""

    sequences: Floats
    tokens: Floats

    def work(self, engine: int) -> float:
        """Of one engine, as `EngineLoad.work`."""
        return float(self.tokens[engine] + SEQUENCE_TOKENS * self.sequences[engine])

    @property
    def limit(self) -> float:
        """Engines with more sequences are overloaded."""
        return float(MAX_LOAD_FACTOR * self.sequences.sum() / len(self.sequences) + LOAD_SLACK)


class Chooser:
    """Chooses among engines by number, by one policy."""

    def __init__(self, policy: Policy, random: Random) -> None:
        self._policy = policy
        self._random = random

    def choose(self, beliefs: Beliefs, holders: Sequence[tuple[int, int]], conversation: int) -> int:
        """The engine for a prompt.

        Args:
            holders: (engine, cached tokens) of those that are believed to have some of the prompt.
        """
        count = len(beliefs.sequences)
        match self._policy:
            case Policy.RANDOM:
                return self._random.randrange(count)
            case Policy.LEAST_LOADED:
                return int((beliefs.tokens + SEQUENCE_TOKENS * beliefs.sequences).argmin())
            case Policy.TWO_CHOICES:
                return min(self._random.randrange(count), self._random.randrange(count), key=beliefs.work)
            case Policy.HASH:
                return self._hashed(beliefs, conversation)
            case Policy.PREFIX:
                return self._where_cached(beliefs, holders)
            case Policy.PREFIX_OF_ALL:
                return self._best_of_all(beliefs, holders)

    def _where_cached(self, beliefs: Beliefs, holders: Sequence[tuple[int, int]]) -> int:
        """The holders of the longest prefix, if any, and two engines drawn at random."""
        limit = beliefs.limit
        free = [(cached, engine) for engine, cached in holders if cached and beliefs.sequences[engine] <= limit]
        most = max(free, default=(0, 0))[0]
        longest = [engine for cached, engine in free if cached == most]
        rivals = [self._draw(beliefs, limit) for _ in range(2)]
        longest = self._random.sample(longest, min(len(longest), 2))
        cached_of = dict(holders)
        return min(
            rivals + longest,
            key=lambda engine: beliefs.work(engine) - CACHED_TOKEN_VALUE * cached_of.get(engine, 0),
        )

    def _draw(self, beliefs: Beliefs, limit: float) -> int:
        """An engine that is not overloaded: at most four fifths of all can be."""
        for _ in range(_NUM_TRIES):
            engine = self._random.randrange(len(beliefs.sequences))
            if beliefs.sequences[engine] <= limit:
                return engine
        return int(beliefs.sequences.argmin())

    def _best_of_all(self, beliefs: Beliefs, holders: Sequence[tuple[int, int]]) -> int:
        cost = beliefs.tokens + SEQUENCE_TOKENS * beliefs.sequences
        for engine, cached in holders:
            cost[engine] -= CACHED_TOKEN_VALUE * cached
        cost[beliefs.sequences > beliefs.limit] = np.inf
        return int(cost.argmin())

    def _hashed(self, beliefs: Beliefs, conversation: int) -> int:
        """The first engine that is not overloaded, in an order that the conversation alone decides."""
        limit = beliefs.limit
        order = Random(conversation)
        engine = order.randrange(len(beliefs.sequences))
        while beliefs.sequences[engine] > limit:
            engine = order.randrange(len(beliefs.sequences))
        return engine
