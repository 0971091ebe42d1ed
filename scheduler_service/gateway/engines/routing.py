"""Which engine gets a request?"""

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler_service.gateway.engines.engine_load import EngineLoad

MAX_LOAD_FACTOR = 1.25
"""An engine with more work than this many times the mean is not asked for its cached prefixes."""

LOAD_SLACK_TOKENS = 4096
"""So much more it may have: where there is little work, no difference matters."""


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
    the mean. Of engines that have as much cached, the least loaded of two random ones gets the request: the loads that
    other gateways see are as old as those seen here, and would all lead to the same engine (Mitzenmacher, "How Useful
    Is Old Information?", 2000).
    """

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def choose(self, candidates: Sequence[Candidate], num_prompt_tokens: int) -> str:
        """The engine that has most of the prompt and not too much work."""
        mean = sum(candidate.load.work for candidate in candidates) / len(candidates)
        limit = MAX_LOAD_FACTOR * mean + LOAD_SLACK_TOKENS
        free = [candidate for candidate in candidates if candidate.load.work <= limit]
        most = max(candidate.num_cached_tokens for candidate in free)
        best = [candidate for candidate in free if candidate.num_cached_tokens == most]
        pair = self._random.sample(best, min(len(best), 2))
        return min(pair, key=lambda candidate: candidate.load.work).engine


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
