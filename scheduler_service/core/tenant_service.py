"""How much service has each tenant had, and who has had the least?

A virtual token counter per tenant, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024),
algorithm 2: tokens that are computed are added to the counter of their tenant, and the tenant with the lowest counter
is served next. A tenant that begins to wait is lifted to the lowest counter of those who wait already, so that nobody
saves up a claim while idle, and nobody pays for what was used while nobody else wanted it.

Two tenants that wait all the time are therefore never further apart than what is admitted at once: a flood of one
delays the other by what runs, not by what waits.
"""

from collections.abc import Iterable

from scheduler_service.core.sequence import Sequence

# What a token costs: an output token takes a step of its own, tokens of a prompt share one.
PROMPT_TOKEN, OUTPUT_TOKEN = 1, 2

# Tenants whose counters are remembered though they do not wait.
_MAX_TENANTS = 1024


class TenantService:
    """Counters of the tenants of one priority."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._floor = 0

    def charge(self, sequence: Sequence) -> None:
        """Add what the sequence has had since the last call. What is computed again after a preemption is free."""
        if sequence.num_cached_tokens is None:
            return
        num_output = len(sequence.token_ids) - sequence.num_given_tokens
        num_prompt = sequence.num_given_tokens - sequence.num_cached_tokens
        service = PROMPT_TOKEN * num_prompt + OUTPUT_TOKEN * num_output
        self._served[sequence.tenant] = self._served.get(sequence.tenant, self._floor) + service - sequence.service
        sequence.service = service

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """A tenant begins to wait beside these."""
        lowest = min((self._served[other] for other in waiting), default=self._floor)
        self._served[tenant] = max(self._served.get(tenant, lowest), lowest)
        if len(self._served) > _MAX_TENANTS:
            self._forget_lowest({tenant, *waiting})

    def least(self, waiting: Iterable[str]) -> str:
        """Who of these, at least one, has had the least service; of equals who has waited for longest."""
        tenant = min(waiting, key=self._served.__getitem__)
        self._floor = max(self._floor, self._served[tenant])
        return tenant

    def _forget_lowest(self, waiting: set[str]) -> None:
        """Who has had little would be lifted anyway."""
        idle = sorted(self._served.keys() - waiting, key=self._served.__getitem__)
        for tenant in idle[: len(idle) // 2]:
            del self._served[tenant]
