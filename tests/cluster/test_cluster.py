"""The short form of the cluster suite, for every run of the tests: the chart's own pods, with a tiny model."""

import asyncio
import json

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.load import make_requests
from tests.cluster.release import install
from tests.cluster.scenarios import Plan, run_scenarios
from tests.fakes.chart import find

# A minute on two free cores. The limit is for machines that do much else.
pytestmark = pytest.mark.timeout(900)

_NUM_STREAMS, _MAX_TOKENS = 24, 96
_QUICK = (
    "engine.replicas=2",
    *("gateway.preStopSeconds=1", "gateway.drainSeconds=2"),
    *("engine.preStopSeconds=1", "engine.drainSeconds=2", "engine.minReadySeconds=1"),
)


def test_streams_are_intact_while_pods_are_restarted_killed_and_cut_off(tmp_path):
    release = install(tmp_path / "release", None, *_QUICK)
    plan = Plan(("rolling-restart", "engine-killed", "engine-cut-off"), partition_s=6.0)
    requests = make_requests(_NUM_STREAMS, _MAX_TOKENS, release.vocab_size, seed=17)

    async def scene() -> None:
        async with Cluster(release.manifests, tmp_path / "pods", release.stores, print) as cluster:
            results = await run_scenarios(cluster, release, plan, requests, print)
            assert [line for result in results for line in result.wrong] == []
            assert all(result.num_streams >= _NUM_STREAMS for result in results)
            # In a rolling restart most streams end within the drain, on a fast machine all of them.
            assert [result.num_moved > 0 for result in results[2:]] == [True, True]
            smoke = cluster.pod(find("Pod", "smoke", "cpu-demo"))
            assert await smoke.run() == 0, smoke.log("smoke").read_text()
            assert json.loads(smoke.log("smoke").read_text())["choices"]
            await cluster.delete_all()
            killed = [event for event in cluster.events if "was killed" in event]
            assert killed == []

    asyncio.run(scene())
