"""Which engine gets a request?"""

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler_service.gateway.engines.engine_load import EngineLoad

CACHED_TOKEN_VALUE = 8
"""How many tokens of work an engine may have more than another for each token of the prompt that it has cached more.

To compute a token again costs more than its own time: it delays whoever waits there, and evicts what others would have
found.
"""

MAX_LOAD_FACTOR = 1.25
LOAD_SLACK = 3
"""An engine with more sequences than this factor times the mean, and so many more, is overloaded."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may get the request. It has so many tokens of the prompt cached, from its beginning."""

    engine: str
    num_cached_tokens: int
    load: EngineLoad


class Router(Protocol):
    """A routing policy."""

    def choose(self, candidates: Sequence[Candidate], num_prompt_tokens: int) -> str:
        """The engine for a prompt, of at least one candidate."""
        ...


class RandomRouter:
    """Any engine."""

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def choose(self, candidates: Sequence[Candidate], num_prompt_tokens: int) -> str:
        """Any engine."""
        return self._random.choice(candidates).engine


class RoundRobinRouter:
    """One engine after the other. Where it begins is random: gateways that start together do not go in step."""

    def __init__(self, source: random.Random) -> None:
        self._next = source.randrange(1 << 16)

    def choose(self, candidates: Sequence[Candidate], num_prompt_tokens: int) -> str:
        """The next one in the order of names."""
        self._next += 1
        return sorted(candidate.engine for candidate in candidates)[self._next % len(candidates)]


class PrefixRouter:
    """Where the longest prefix of the prompt is cached, unless that engine has too much work compared to the others.

    The limit is that of consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018): a factor over
    the mean. Below it, what is cached is weighed against work. Those with the longest prefix compete with two engines
    drawn at random, not with all: other gateways see loads that are as old as those seen here, and all would find the
    same engine to be the least loaded (Mitzenmacher, "How Useful Is Old Information?", 2000).
    """

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def choose(self, candidates: Sequence[Candidate], num_prompt_tokens: int) -> str:
        """The engine that has most of the prompt for its work."""
        mean = sum(candidate.load.num_sequences for candidate in candidates) / len(candidates)
        limit = MAX_LOAD_FACTOR * mean + LOAD_SLACK
        free = [candidate for candidate in candidates if candidate.load.num_sequences <= limit]
        most = max(candidate.num_cached_tokens for candidate in free)
        longest = [candidate for candidate in free if candidate.num_cached_tokens == most] if most else []
        drawn = self._draw_two(free) + self._draw_two(longest)
        return min(drawn, key=_cost).engine

    def _draw_two(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return self._random.sample(candidates, min(len(candidates), 2))


def _cost(candidate: Candidate) -> int:
    return candidate.load.work - CACHED_TOKEN_VALUE * candidate.num_cached_tokens


class RoutingPolicy(enum.StrEnum):
    """The policies by name."""

    PREFIX = "prefix"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"


def make_router(policy: RoutingPolicy, source: random.Random | None = None) -> Router:
    """A router of this policy; `source` is what it draws from."""
    routers: dict[RoutingPolicy, type[PrefixRouter] | type[RoundRobinRouter] | type[RandomRouter]] = {
        RoutingPolicy.PREFIX: PrefixRouter,
        RoutingPolicy.ROUND_ROBIN: RoundRobinRouter,
        RoutingPolicy.RANDOM: RandomRouter,
    }
    return routers[policy](source or random.Random())  # noqa: S311
