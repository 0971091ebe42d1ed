"""Does the benchmark of routing measure what it says? In short, over real processes."""

import dataclasses
from xml.etree import ElementTree

from benchmarks.routing import NUM_ENGINES, SINGLE, Result, make_table, measure
from benchmarks.routing_plot import draw
from benchmarks.routing_workloads import SharedPrefixes
from scheduler_service.gateway.engines.routing import RoutingPolicy

WORKLOAD = SharedPrefixes(num_instructions=2, reply=(2, 4))


def test_requests_are_counted_and_find_what_is_cached() -> None:
    result = measure("shared", WORKLOAD, RoutingPolicy.PREFIX, num_gateways=2, warm_up_s=2.0, seconds=3.0)
    assert result.num_requests > 10
    assert 0.5 < result.hit_rate < 1.0
    assert 1.0 <= result.token_imbalance <= NUM_ENGINES
    assert 1.0 <= result.sequence_imbalance <= NUM_ENGINES
    assert 0.0 < result.ttft_p50_ms <= result.ttft_p99_ms


def test_a_table_and_a_picture_show_all_runs() -> None:
    results = [
        Result(workload, routing, 100, 0.8, 1.1, 1.2, 3.0, 40.0, 80.0)
        for workload in ("chat", "shared")
        for routing in (SINGLE, *RoutingPolicy)
    ]
    results[1] = dataclasses.replace(results[1], hit_rate=0.4)
    table = make_table(results)
    assert table.row_count == len(results)
    assert list(table.columns[3].cells)[:2] == ["100.0%", "50.0%"]
    picture = ElementTree.fromstring(draw([result.figures for result in results]))
    shown = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert shown.count("1.20") == shown.count("80 ms") == len(results)
    assert shown.count("40%") == 1
