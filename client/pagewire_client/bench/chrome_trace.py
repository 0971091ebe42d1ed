"""What did all processes do while a benchmark ran? One Chrome trace, which Perfetto opens.

Scheduler and workers write what they recorded when they end, each to a file of its own; requests are added here.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagewire_client.bench.trace import Trace
from pagewire_client.errors import PagewireError

Event = dict[str, Any]

RUN = "run"


@contextmanager
def traced(file: Path | None) -> Iterator[tuple[list[str], list[Event]]]:
    """Give the flags that a private service needs, and a list for events of this process; write the trace at the end.

    The service must have ended by then. Without a file there are no flags, and nothing is written.

    Raises:
        PagewireError: the file cannot be written.
    """
    events: list[Event] = []
    if file is None:
        yield [], events
        return
    with tempfile.TemporaryDirectory(prefix="pagewire-trace-") as folder:
        yield ["--trace-dir", folder], events
        for part in sorted(Path(folder).glob("*.json")):
            events += json.loads(part.read_text(encoding="utf-8"))
    try:
        file.write_text(json.dumps({"traceEvents": [*_name_of_this_process(), *events]}), encoding="utf-8")
    except OSError as error:
        raise PagewireError(f"cannot write {file}: {error.strerror}") from error


def run_event(start_s: float, duration_s: float) -> Event:
    """A run of the benchmark. Times are of the monotonic clock."""
    return {"name": RUN, "ph": "X", "ts": start_s * 1e6, "dur": duration_s * 1e6, "pid": os.getpid(), "tid": 0}


def request_events(traces: Sequence[Trace]) -> list[Event]:
    """Each request from its sending to its last message, cut at its first token."""
    events: list[Event] = []
    for index, trace in enumerate(traces):
        times = (trace.sent_s, trace.messages[0][0], trace.messages[-1][0])
        for name, begin_s, end_s in zip(("first token", "decode"), times, times[1:], strict=False):
            common = {"name": name, "cat": "request", "id": index, "pid": os.getpid(), "tid": 0}
            events += [{"ph": "b", "ts": begin_s * 1e6, **common}, {"ph": "e", "ts": end_s * 1e6, **common}]
    return events


def device_busy(events: Sequence[Event]) -> float | None:
    """The share of the time from the first to the last step in which a device ran a step; None if none is known.

    Of all devices the one that had the least to do; of all runs the last.
    """
    runs = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == RUN]
    begin_us, end_us = runs[-1] if runs else (0.0, float("inf"))
    spans: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        if event["name"] == "device step" and begin_us <= event["ts"] <= end_us:
            spans.setdefault(event["pid"], []).append((event["ts"], event["ts"] + event["dur"]))
    return min((_covered(sorted(of_device)) for of_device in spans.values()), default=None)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The share of the time from the first begin to the last end that spans in order of their begin cover."""
    covered, until = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered / (until - spans[0][0])


def _name_of_this_process() -> list[Event]:
    return [{"name": "process_name", "ph": "M", "pid": os.getpid(), "args": {"name": "client"}}]
