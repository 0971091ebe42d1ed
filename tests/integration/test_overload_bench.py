"""Does the benchmark of an overloaded service measure what it says? In short, over real processes."""

import argparse

from benchmarks.overload import measure_overload, measure_streams

FLAGS = argparse.Namespace(
    gateways=2, clients=2, steps_per_s=200.0, streams=40, tokens=30, running=4, waiting=4, seconds=1.0
)


def test_many_streams_end_without_errors() -> None:
    result = measure_streams(FLAGS)
    assert (result["num_streams"], dict(result["codes"]), result["num_short"]) == (40, {"OK": 40}, 0)
    assert result["slowest_over_median"] >= 1
    assert len(result["gateway_peak_mib"]) == 2


def test_what_is_too_much_is_refused_while_accepted_streams_run() -> None:
    result = measure_overload(FLAGS)
    assert result["codes"].total() == 9 * (4 + 4)
    # Those that wait may come a little later than the first that ask.
    assert result["codes"]["RESOURCE_EXHAUSTED"] >= 9 * (4 + 4) - 4
    assert result["refusal_p99_ms"] >= result["refusal_p50_ms"] > 0
    assert result["tokens_per_s_during"] > 0
