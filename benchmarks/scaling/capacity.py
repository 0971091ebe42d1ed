"""What is used up first as an installation grows? Arithmetic over measured costs and simulated rates."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.scaling.costs import Costs

GATEWAY_CORE_LIMIT = 0.7
"""Of the one core that a gateway's event loop can use: as the chart's autoscaler aims at."""
SCHEDULER_CORE_LIMIT = 0.7
GATEWAY_MEMORY_BYTES = 2 << 30
"""The chart's limit."""
GATEWAY_DESCRIPTORS = 1024
"""The soft limit of many container runtimes, of which callers' connections take some as well."""
_STATUSES_PER_S = 1.0
_MOST_ENGINES = 5000
_CACHE_EVENTS = "cache events"
# Around the name: its first length and its end, type and class.
_DNS_QUESTION_BYTES = 6
_DNS_HEADER_BYTES, _DNS_RECORD_BYTES, _DNS_OPTIONS_BYTES = 12, 16, 11


@dataclass(frozen=True, slots=True)
class EngineRates:
    """What one engine does, at the load that it is planned for."""

    name: str
    tokens_per_s: float
    steps_per_s: float
    requests_per_s: float
    num_running: float
    num_open: float
    cache_events_per_s: float
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Installation:
    """So many engines and gateways; every gateway is connected to `engines_per_gateway` (None: all).

    `tokens_per_write`: how many tokens pool before they are written to a caller.
    """

    num_engines: int
    num_gateways: int
    watches_cache: bool = True
    tokens_per_write: float = 1.0
    engines_per_gateway: int | None = None

    @property
    def num_known(self) -> int:
        """Engines that each gateway is connected to."""
        return min(self.engines_per_gateway or self.num_engines, self.num_engines)

    @property
    def gateways_per_engine(self) -> float:
        """Gateways that are connected to each engine."""
        return self.num_gateways * self.num_known / self.num_engines


def messages_per_step(installation: Installation, rates: EngineRates) -> float:
    """Gateways that have a stream at an engine, of those that know it: as many get a message of each step."""
    gateways = max(installation.gateways_per_engine, 1.0)
    return float(gateways * (1.0 - (1.0 - 1.0 / gateways) ** rates.num_running))


def gateway_cores(installation: Installation, rates: EngineRates, costs: Costs) -> dict[str, float]:
    """Seconds of a second that a gateway's event loop is busy, by what with."""
    engines_each = installation.num_engines / installation.num_gateways
    known = installation.num_known
    tokens_per_s, requests_per_s = rates.tokens_per_s * engines_each, rates.requests_per_s * engines_each
    messages_per_s = messages_per_step(installation, rates) * rates.steps_per_s * engines_each
    choose_us = costs.gateway_match_us + costs.gateway_choose_us + costs.gateway_choose_engine_us * max(known - 16, 0)
    events_per_s = known * rates.cache_events_per_s if installation.watches_cache else 0.0
    parts_us = {
        "writes": costs.gateway_write_us * tokens_per_s / installation.tokens_per_write,
        "tokens": costs.gateway_token_us * tokens_per_s,
        "requests": costs.gateway_request_us * requests_per_s,
        "choices": choose_us * requests_per_s,
        "step messages": costs.gateway_message_us * messages_per_s,
        "connections": costs.gateway_engine_idle_us * known,
        _CACHE_EVENTS: costs.gateway_cache_event_us * events_per_s,
    }
    return {name: us / 1e6 for name, us in parts_us.items()}


def gateways_needed(installation: Installation, rates: EngineRates, costs: Costs) -> int | None:
    """The fewest gateways whose event loops stay under the limit; None: no number does. `num_gateways` is not read."""

    def fits(count: int) -> bool:
        tried = replace(installation, num_gateways=count)
        return sum(gateway_cores(tried, rates, costs).values()) <= GATEWAY_CORE_LIMIT

    most = 64 * installation.num_engines + 64
    if not fits(most):
        return None
    least = 0
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle, most)
    return most


def gateway_memory_bytes(installation: Installation, rates: EngineRates, costs: Costs) -> float:
    """Of one gateway."""
    known = installation.num_known
    streams = rates.num_open * installation.num_engines / installation.num_gateways
    mirrored = known * rates.num_blocks * costs.gateway_cache_block_bytes if installation.watches_cache else 0.0
    own = costs.gateway_base_mib * (1 << 20) + 1024 * (costs.gateway_engine_kib * known)
    return own + 1024 * costs.gateway_stream_kib * streams + mirrored


def scheduler_cores(installation: Installation, rates: EngineRates, costs: Costs) -> dict[str, float]:
    """Seconds of a second that a scheduler's one thread is busy, by what with."""
    known_by = installation.gateways_per_engine
    told = known_by * rates.cache_events_per_s if installation.watches_cache else 0.0
    parts_us = {
        "steps": (costs.scheduler_step_us + costs.scheduler_sequence_us * rates.num_running) * rates.steps_per_s,
        "step messages": costs.engine_message_us * messages_per_step(installation, rates) * rates.steps_per_s,
        "statuses": costs.engine_message_us * known_by * _STATUSES_PER_S,
        _CACHE_EVENTS: costs.engine_cache_event_us * told,
    }
    return {name: us / 1e6 for name, us in parts_us.items()}


def cache_event_bytes_per_s(installation: Installation, rates: EngineRates, costs: Costs) -> float:
    """That one gateway receives."""
    return installation.num_known * rates.cache_events_per_s * costs.cache_event_bytes


def dns_answer_bytes(name: str, num_addresses: int) -> int:
    """Of the answer with all IPv4 addresses of a name (RFC 1035, names compressed; RFC 6891 for the options)."""
    question = len(name.rstrip(".")) + _DNS_QUESTION_BYTES
    return _DNS_HEADER_BYTES + question + num_addresses * _DNS_RECORD_BYTES + _DNS_OPTIONS_BYTES


@dataclass(frozen=True, slots=True)
class Break:
    """The first size at which something is used up."""

    what: str
    num_engines: int | None
    figure: str


def first_breaks(rates: EngineRates, costs: Costs) -> list[Break]:
    """What is used up at which number of engines, the first first, where every gateway knows all engines.

    There are as many gateways as tokens, requests and messages need (`gateways_needed` without cache events). What
    lasts up to 5,000 engines has no number.
    """
    sizes = range(1, _MOST_ENGINES + 1)
    planned = {size: _planned(size, rates, costs) for size in sizes}
    breaks = []
    for what, (used, limit, unit) in _resources(rates, costs).items():
        size = next((size for size in sizes if used(planned[size]) > limit), None)
        figure = f"{used(planned[size]):.3g} of {limit:.3g} {unit}" if size is not None else ""
        breaks.append(Break(what, size, figure))
    return sorted(breaks, key=lambda each: each.num_engines or _MOST_ENGINES + 1)


def _resources(rates: EngineRates, costs: Costs) -> dict[str, tuple[Callable[[Installation], float], float, str]]:
    """How much of each is used, its limit, and its unit."""

    def scheduler_rest(at: Installation) -> float:
        return sum(used for what, used in scheduler_cores(at, rates, costs).items() if what != _CACHE_EVENTS)

    gib = 1 << 30
    return {
        "a gateway's event loop, by cache events": (
            lambda at: gateway_cores(at, rates, costs)[_CACHE_EVENTS],
            GATEWAY_CORE_LIMIT,
            "cores",
        ),
        "a gateway's event loop, by being connected": (
            lambda at: gateway_cores(at, rates, costs)["connections"],
            GATEWAY_CORE_LIMIT,
            "cores",
        ),
        "a gateway's memory": (
            lambda at: gateway_memory_bytes(at, rates, costs) / gib,
            GATEWAY_MEMORY_BYTES / gib,
            "GiB",
        ),
        "a gateway's file descriptors": (
            lambda at: costs.gateway_engine_fds * at.num_known,
            GATEWAY_DESCRIPTORS,
            "descriptors",
        ),
        "a scheduler's thread, by cache events": (
            lambda at: scheduler_cores(at, rates, costs)[_CACHE_EVENTS],
            SCHEDULER_CORE_LIMIT,
            "cores",
        ),
        "a scheduler's thread, by all else": (scheduler_rest, SCHEDULER_CORE_LIMIT, "cores"),
    }


def _planned(num_engines: int, rates: EngineRates, costs: Costs) -> Installation:
    count = gateways_needed(Installation(num_engines, 1, watches_cache=False), rates, costs) or num_engines
    return Installation(num_engines, count)
