"""Random and damaged messages over every protocol, many at once, and what the service did with them.

Case number n of a seed is the same in every run, whichever cases ran before it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.hostile.grpc_cases import Method, choose, find_methods
from tests.hostile.grpc_sender import GrpcSender
from tests.hostile.http_cases import HttpCases
from tests.hostile.http_sender import HttpSender
from tests.hostile.service import HostileService, Vitals

HTTP = "http"
_NUM_AT_ONCE = 32
_NUM_CONNECTIONS = 4
_HTTP_SHARE = 0.3
_MAX_WRONG = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try. `protocols` are names of gRPC services and "http"; none: all that are served."""

    num_cases: int
    seed: int = 0
    first_case: int = 0
    num_in_batch: int = 5000
    protocols: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """What came of it; `wrong` is empty if all is well."""

    num_cases: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run_fuzz(
    service: HostileService, plan: Plan, on_batch: Callable[[Result, Vitals], None] = lambda result, vitals: None
) -> Result:
    """Send all cases, in batches, after each of which the service must be as before."""
    result = Result()
    methods = find_methods(service.address)
    before = service.vitals()
    end = plan.first_case + plan.num_cases
    for start in range(plan.first_case, end, plan.num_in_batch):
        numbers = range(start, min(start + plan.num_in_batch, end))
        asyncio.run(_run_batch(service, plan, methods, numbers, result))
        result.wrong += service.complaints(before)
        on_batch(result, service.vitals())
        if result.wrong:
            break
    return result


async def _run_batch(
    service: HostileService, plan: Plan, methods: Sequence[Method], numbers: Sequence[int], result: Result
) -> None:
    methods = [method for method in methods if not plan.protocols or method.service in plan.protocols]
    http_share = (_HTTP_SHARE if methods else 1.0) if not plan.protocols or HTTP in plan.protocols else 0.0
    cases, over_http = HttpCases(), HttpSender(service.plain.http_port)
    over_grpc = GrpcSender(service.address, _NUM_CONNECTIONS)
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            choice = random.Random(f"{plan.seed}:{number}")
            if choice.random() < http_share:
                name, (outcome, wrong) = HTTP, await over_http.send(cases.make(choice))
            else:
                method = choose(methods, choice)
                name, (outcome, wrong) = method.name, await over_grpc.send(method.make(choice))
            result.num_cases += 1
            result.outcomes[name, outcome] += 1
            if wrong and len(result.wrong) < _MAX_WRONG:
                result.wrong.append(f"case {number} of seed {plan.seed}, {name}: {wrong}")

    await asyncio.gather(*(work() for _ in range(_NUM_AT_ONCE)))
    await over_grpc.close()
