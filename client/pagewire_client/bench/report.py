"""What did a streaming benchmark measure? Throughput and latency figures from the traces of its requests."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from pagewire_client.bench.trace import Trace
from pagewire_client.bench.workload import Summary

_PERCENTS = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one figure over requests or messages, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark's figures.

    decode_tokens_per_s counts the tokens that came while all streams that run at a time were past their first token,
    over that time; None if there was no such time. time_per_output_token is a request's (last - first token) time over
    its further tokens; inter_message_latency is between messages of a stream, each of which may carry several tokens.
    """

    workload: Summary
    concurrency: int
    wall_s: float
    num_input_tokens: int
    num_output_tokens: int
    output_tokens_per_s: float
    decode_tokens_per_s: float | None
    tokens_per_message: float
    time_to_first_token: Percentiles
    time_per_output_token: Percentiles
    inter_message_latency: Percentiles


def make_report(workload: Summary, concurrency: int, traces: Sequence[Trace]) -> Report:
    """Compute the figures of a workload whose every request gave at least one message."""
    wall_s = max(trace.messages[-1][0] for trace in traces) - min(trace.sent_s for trace in traces)
    num_output_tokens = sum(trace.num_tokens for trace in traces)
    return Report(
        workload=workload,
        concurrency=concurrency,
        wall_s=wall_s,
        num_input_tokens=workload.num_input_tokens,
        num_output_tokens=num_output_tokens,
        output_tokens_per_s=num_output_tokens / wall_s,
        decode_tokens_per_s=_decode_rate(traces, min(concurrency, workload.num_requests)),
        tokens_per_message=num_output_tokens / sum(len(trace.messages) for trace in traces),
        time_to_first_token=_percentiles([trace.messages[0][0] - trace.sent_s for trace in traces]),
        time_per_output_token=_percentiles([_time_per_token(trace) for trace in traces if len(trace.messages) > 1]),
        inter_message_latency=_percentiles(
            [b[0] - a[0] for trace in traces for a, b in zip(trace.messages, trace.messages[1:], strict=False)]
        ),
    )


def _time_per_token(trace: Trace) -> float:
    (first_s, first_count), (last_s, _) = trace.messages[0], trace.messages[-1]
    return (last_s - first_s) / (trace.num_tokens - first_count)


def _decode_rate(traces: Sequence[Trace], full: int) -> float | None:
    """Tokens per second of the time in which `full` streams were decoding.

    A stream decodes from its first message to its last; a message's tokens are spread over the time since the
    message before it. A first message's tokens come from prefill and are not counted.
    """
    times, full_s = _full_time(traces, full)
    num_tokens = 0.0
    for trace in traces:
        for (begin_s, _), (end_s, count) in zip(trace.messages, trace.messages[1:], strict=False):
            overlap_s = full_s[bisect_left(times, end_s)] - full_s[bisect_left(times, begin_s)]
            num_tokens += count * overlap_s / (end_s - begin_s) if end_s > begin_s else 0.0
    return num_tokens / full_s[-1] if full_s[-1] > 0 else None


def _full_time(traces: Sequence[Trace], full: int) -> tuple[list[float], list[float]]:
    """Times of all messages in order, and how long `full` streams had been decoding by then."""
    changes: dict[float, int] = {when: 0 for trace in traces for when, _ in trace.messages}
    for trace in traces:
        changes[trace.messages[0][0]] += 1
        changes[trace.messages[-1][0]] -= 1
    times = sorted(changes)
    full_s, total_s, num_decoding = [], 0.0, 0
    for when, next_s in zip(times, [*times[1:], times[-1]], strict=True):
        full_s.append(total_s)
        num_decoding += changes[when]
        total_s += next_s - when if num_decoding >= full else 0.0
    return times, full_s


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    ordered = sorted(seconds) or [0.0]
    return Percentiles(*(1000.0 * ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in _PERCENTS))
