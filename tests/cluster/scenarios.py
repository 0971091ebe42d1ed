"""What happens to the cluster while streams run?"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.load import Load, Result
from tests.cluster.pod import Pod
from tests.cluster.release import ENGINES, GATEWAYS, Release
from tests.cluster.waiting import until


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Attributes:
        scenarios: names of `SCENARIOS`.
        partition_s: how long an engine is cut off.
    """

    scenarios: tuple[str, ...]
    partition_s: float


async def nothing(cluster: Cluster, plan: Plan) -> None:
    """Streams begin and end."""


async def rolling_restart(cluster: Cluster, plan: Plan) -> None:
    """Every pod is replaced, engines and gateways at the same time."""
    await cluster.restart_all()


async def rolling_engines(cluster: Cluster, plan: Plan) -> None:
    """Every engine is replaced."""
    await cluster.controllers[ENGINES].restart()


async def rolling_gateways(cluster: Cluster, plan: Plan) -> None:
    """Every gateway is replaced."""
    await cluster.controllers[GATEWAYS].restart()


async def engine_killed(cluster: Cluster, plan: Plan) -> None:
    """All processes of one engine die at once, and it comes back."""
    engine = _engine(cluster)
    engine.kill()
    await until(lambda: not engine.is_ready)
    await until(lambda: engine.is_ready)


async def engine_lost(cluster: Cluster, plan: Plan) -> None:
    """The machine under one engine is gone without a word, and the engine comes back elsewhere, at a new address."""
    await cluster.controllers[ENGINES].lose(_engine(cluster))


async def gateway_killed(cluster: Cluster, plan: Plan) -> None:
    """All processes of one gateway die at once, and it comes back."""
    gateway = cluster.controllers[GATEWAYS].pods[-1]
    gateway.kill()
    await until(lambda: not gateway.is_ready)
    await until(lambda: gateway.is_ready)


async def gateway_lost(cluster: Cluster, plan: Plan) -> None:
    """The machine under one gateway is gone without a word, and another gateway takes its place."""
    gateways = cluster.controllers[GATEWAYS]
    await gateways.lose(gateways.pods[-1])


async def all_engines_killed(cluster: Cluster, plan: Plan) -> None:
    """All processes of all engines die at once."""
    engines = list(cluster.controllers[ENGINES].pods)
    for engine in engines:
        engine.kill()
    await until(lambda: not any(engine.is_ready for engine in engines))


async def names_away(cluster: Cluster, plan: Plan) -> None:
    """No name can be looked up, and an engine dies and comes back meanwhile."""
    cluster.name_server.is_failing = True
    await engine_killed(cluster, plan)
    cluster.name_server.is_failing = False


async def engine_cut_off(cluster: Cluster, plan: Plan) -> None:
    """Nothing that one engine and the gateways send each other arrives, for a while."""
    engine = _engine(cluster)
    assert engine.link is not None
    engine.link.cut()
    await asyncio.sleep(plan.partition_s)
    engine.link.restore()


SCENARIOS: dict[str, Callable[[Cluster, Plan], Awaitable[None]]] = {
    "undisturbed": nothing,
    "rolling-restart": rolling_restart,
    "rolling-engines": rolling_engines,
    "rolling-gateways": rolling_gateways,
    "engine-killed": engine_killed,
    "engine-cut-off": engine_cut_off,
    "engine-lost": engine_lost,
    "gateway-killed": gateway_killed,
    "gateway-lost": gateway_lost,
    "all-engines-killed": all_engines_killed,
    "names-away": names_away,
}


async def run_scenarios(
    cluster: Cluster,
    release: Release,
    plan: Plan,
    requests: Sequence[dict[str, Any]],
    on_result: Callable[[Result], None],
) -> list[Result]:
    """Find out what each request gives, then run all of them again and again while something happens."""
    await cluster.wait_until_ready()
    first = Load(cluster, release, requests, "first")
    await first.start()
    expected = {index: streams[0] for index, streams in (await first.stop()).items()}
    results = [first.result(expected)]
    on_result(results[0])
    for name in plan.scenarios:
        load = Load(cluster, release, requests, name)
        await load.start()
        await SCENARIOS[name](cluster, plan)
        await cluster.wait_until_ready()
        await load.stop()
        results.append(load.result(expected))
        on_result(results[-1])
    return results


def _engine(cluster: Cluster) -> Pod:
    return max(cluster.controllers[ENGINES].pods, key=lambda pod: pod.name)
