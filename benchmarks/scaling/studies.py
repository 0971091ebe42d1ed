"""What is simulated: which fleets, and why each."""

from dataclasses import dataclass, replace

from benchmarks.scaling.detail import EngineSize
from benchmarks.scaling.fleet import FleetConfig
from benchmarks.scaling.policies import Policy
from benchmarks.scaling.shapes import QWEN3_0_6B, QWEN3_8B
from benchmarks.scaling.workload import CHATS, QUESTIONS

CHAT_ENGINE = EngineSize(QWEN3_8B, 256)
CHATS_PER_ENGINE = 250
SIZES = (4, 16, 64, 256, 1000)
STATUS_PERIODS_S = (0.1, 0.3, 1.0, 3.0, 10.0)
EVENT_LAGS_S = (0.0, 1.0, 5.0, 20.0, None)
SUBSETS = (4, 16, 64, None)
_LARGEST_FOR_ALL = 256


@dataclass(frozen=True, slots=True)
class FleetJob:
    """One simulated fleet of a study."""

    study: str
    config: FleetConfig

    @property
    def weight(self) -> float:
        """How much work it is: about the number of requests."""
        config = self.config
        return config.num_engines * config.users_per_engine * (config.warm_up_s + config.seconds)


_BASE = FleetConfig(
    num_engines=64,
    num_gateways=32,
    users_per_engine=CHATS_PER_ENGINE,
    size=CHAT_ENGINE,
    habits=CHATS,
    policy=Policy.PREFIX,
    warm_up_s=30.0,
    seconds=10.0,
)


def fleet_jobs(largest: int = SIZES[-1]) -> list[FleetJob]:
    """All of them, up to so many engines; the largest first, so that those that end last are small."""
    jobs = [_million(), *_sizes(), *_status_periods(), *_event_lags(), *_subsets()]
    jobs = [job for job in jobs if job.config.num_engines <= largest]
    return sorted(jobs, key=lambda job: -job.weight)


def _million() -> FleetJob:
    """A thousand engines with a thousand streams each, of the model whose engines are fastest."""
    config = FleetConfig(
        num_engines=1000,
        num_gateways=1000,
        users_per_engine=1000,
        size=EngineSize(QWEN3_0_6B, 1024),
        habits=QUESTIONS,
        policy=Policy.PREFIX,
        warm_up_s=8.0,
        seconds=4.0,
    )
    return FleetJob("million", config)


def _sizes() -> list[FleetJob]:
    """All policies as the fleet grows, and the product's in the largest."""
    jobs = []
    for size in SIZES:
        policies = list(Policy) if size <= _LARGEST_FOR_ALL else [Policy.PREFIX]
        jobs += [
            FleetJob("size", replace(_BASE, num_engines=size, num_gateways=max(2, size // 2), policy=policy))
            for policy in policies
        ]
    return jobs


def _status_periods() -> list[FleetJob]:
    """Loads of different age."""
    policies = (Policy.LEAST_LOADED, Policy.TWO_CHOICES, Policy.PREFIX)
    return [
        FleetJob("status period", replace(_BASE, policy=policy, status_period_s=period_s))
        for policy in policies
        for period_s in STATUS_PERIODS_S
    ]


def _event_lags() -> list[FleetJob]:
    """Knowledge of caches of different age, and none."""
    return [FleetJob("event lag", replace(_BASE, events_lag_s=lag_s)) for lag_s in EVENT_LAGS_S]


def _subsets() -> list[FleetJob]:
    """Gateways that know some engines only, with users who come to any gateway and users who stay with theirs."""
    return [
        FleetJob(
            "subset",
            replace(_BASE, num_engines=128, num_gateways=64, engines_per_gateway=subset, users_stay=users_stay),
        )
        for subset in SUBSETS
        for users_stay in (False, True)
    ]
