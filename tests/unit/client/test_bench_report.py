"""Are a benchmark's figures what its traces say?"""

import pytest

from pagewire_client.bench.report import make_report
from pagewire_client.bench.trace import Trace
from pagewire_client.bench.workload import Summary

TWO = Summary("random", num_requests=2, num_input_tokens=8, num_output_tokens=8, temperature=0.0)


def test_figures_of_two_streams_side_by_side():
    traces = [Trace(0.0, [(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1)]), Trace(0.0, [(2.0, 1), (3.0, 1), (4.0, 2)])]
    report = make_report(TWO, 2, traces)
    assert (report.wall_s, report.num_input_tokens, report.num_output_tokens) == (4.0, 8, 8)
    assert report.output_tokens_per_s == 2.0
    assert report.tokens_per_message == pytest.approx(8 / 7)
    # Both decode from 2.0 to 4.0; in that time come 1 + 1 and 1 + 2 tokens.
    assert report.decode_tokens_per_s == pytest.approx(5 / 2.0)
    assert report.time_to_first_token.p50_ms == 2000.0
    assert report.time_per_output_token.p50_ms == pytest.approx(1000.0)
    assert report.inter_message_latency.p99_ms == 1000.0


def test_decode_rate_needs_all_streams_at_once():
    traces = [Trace(0.0, [(1.0, 1), (2.0, 1)]), Trace(2.0, [(3.0, 1), (4.0, 1)])]
    assert make_report(TWO, 2, traces).decode_tokens_per_s is None
    assert make_report(TWO, 1, traces).decode_tokens_per_s == pytest.approx(1.0)


def test_one_token_answers_have_no_latency_between_tokens():
    report = make_report(TWO, 2, [Trace(0.0, [(1.0, 1)]), Trace(0.0, [(2.0, 1)])])
    assert report.time_per_output_token.p50_ms == 0.0
    assert report.output_tokens_per_s == 1.0
