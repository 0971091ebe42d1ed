"""Does a service under far too many requests stay fair, quick to refuse, and fast for those it has accepted?

Two parts, over real gateway and scheduler processes and a worker that answers so many steps a second:

    streams    many at once, to their end: errors, the slowest stream over the median one, the gateways' memory
    overload   as many streams as may run, as many requests as may wait, then ten times as many in all: how long a
               refusal takes, and the tokens a second of the streams meanwhile, over those before
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import psutil

from benchmarks.overload_clients import Answer, StreamResult, ask_for_more, read_streams
from benchmarks.stub_service import StubService

_BLOCK_TOKENS = 16
_LIMIT_S = 600.0
# Of streams that do not end while they are measured.
_ENDLESS = 100_000


class _Readers:
    """Client processes that read streams."""

    def __init__(self, context: SpawnContext, addresses: Sequence[str], counts: Sequence[int], num_tokens: int) -> None:
        self._counters: list[Synchronized[int]] = [context.Value("q", 0) for _ in counts]
        self._results: Queue[list[StreamResult]] = context.Queue()
        self._processes = [
            context.Process(
                target=read_streams, args=(addresses, count, num_tokens, counter, self._results), daemon=True
            )
            for count, counter in zip(counts, self._counters, strict=True)
        ]
        for process in self._processes:
            process.start()

    @property
    def num_tokens(self) -> int:
        """Tokens that have come so far."""
        return sum(counter.value for counter in self._counters)

    def tokens_per_s(self, seconds: float) -> float:
        """Over the next so many seconds."""
        before, start_s = self.num_tokens, time.monotonic()
        time.sleep(seconds)
        return (self.num_tokens - before) / (time.monotonic() - start_s)

    def results(self) -> list[StreamResult]:
        """Of all streams, once they have ended."""
        return [result for _ in self._processes for result in self._results.get(timeout=_LIMIT_S)]

    def kill(self) -> None:
        """End them in mid-stream."""
        for process in self._processes:
            process.kill()


def measure_streams(flags: argparse.Namespace) -> dict[str, Any]:
    """Many streams at once."""
    num_blocks = flags.streams * (-(-flags.tokens // _BLOCK_TOKENS) + 4)
    context = multiprocessing.get_context("spawn")
    with StubService(flags.streams, num_blocks, flags.gateways, flags.steps_per_s, _budget(flags.streams)) as service:
        readers = _Readers(context, service.addresses, _split(flags.streams, flags.clients), flags.tokens)
        results = readers.results()
        peaks = [_peak_mib(gateway) for gateway in service.gateways]
    seconds = [result.seconds for result in results]
    return {
        "num_streams": len(results),
        "codes": Counter(result.code for result in results),
        "num_short": sum(result.num_tokens != flags.tokens for result in results),
        "median_s": statistics.median(seconds),
        "slowest_s": max(seconds),
        "slowest_over_median": max(seconds) / statistics.median(seconds),
        "tokens_per_s": sum(result.num_tokens for result in results) / max(seconds),
        "gateway_peak_mib": peaks,
    }


def measure_overload(flags: argparse.Namespace) -> dict[str, Any]:
    """Ten times what may run and wait."""
    context, most = multiprocessing.get_context("spawn"), flags.running + flags.waiting
    limits = ["--max-waiting-requests", str(flags.waiting), *_budget(flags.running)]
    num_blocks = flags.running * (_ENDLESS // _BLOCK_TOKENS + 4)
    with StubService(flags.running, num_blocks, flags.gateways, flags.steps_per_s, limits) as service:
        readers = _Readers(context, service.addresses, _split(flags.running, flags.clients), _ENDLESS)
        _wait_for_tokens(readers, flags.running)
        waiters = _Readers(context, service.addresses, [flags.waiting], _ENDLESS)
        answers: Queue[list[Answer]] = context.Queue()
        ready, begin = context.Event(), context.Event()
        asking = (service.addresses, 9 * most, flags.seconds, ready, begin, answers)
        context.Process(target=ask_for_more, args=asking, daemon=True).start()
        assert ready.wait(_LIMIT_S)
        before = readers.tokens_per_s(flags.seconds)
        begin.set()
        during = readers.tokens_per_s(flags.seconds)
        asked = answers.get(timeout=_LIMIT_S)
        waiters.kill()
        readers.kill()
    refused = sorted(answer.seconds for answer in asked if answer.code == "RESOURCE_EXHAUSTED")
    return {
        "running": flags.running,
        "waiting": flags.waiting,
        "codes": Counter(answer.code for answer in asked),
        "asked_per_s": len(asked) / flags.seconds,
        "refusal_p50_ms": 1e3 * refused[len(refused) // 2],
        "refusal_p99_ms": 1e3 * refused[len(refused) * 99 // 100],
        "tokens_per_s_before": before,
        "tokens_per_s_during": during,
        "speed_kept": during / before,
    }


def _budget(num_seqs: int) -> list[str]:
    return ["--max-num-batched-tokens", str(max(8192, 2 * num_seqs))]


def _wait_for_tokens(readers: _Readers, num_streams: int) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while readers.num_tokens < 10 * num_streams:
        assert time.monotonic() < deadline_s, "the streams do not run"
        time.sleep(0.05)


def _split(count: int, parts: int) -> list[int]:
    return [count // parts + (index < count % parts) for index in range(parts)]


def _peak_mib(process: psutil.Process) -> float:
    """Most memory that was resident at any time."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kib) / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes")
    parser.add_argument("--clients", type=int, default=2, help="client processes that read streams")
    parser.add_argument("--steps-per-s", type=float, default=2000.0, help="of the worker")
    parser.add_argument("--streams", type=int, default=1000, help="of the first part")
    parser.add_argument("--tokens", type=int, default=200, help="per stream of the first part")
    parser.add_argument("--running", type=int, default=64, help="sequences that may run in the second part")
    parser.add_argument("--waiting", type=int, default=64, help="requests that may wait in the second part")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of the second part")
    flags = parser.parse_args()
    print(json.dumps({part: _PARTS[part](flags) for part in flags.parts}, indent=2))


_PARTS = {"streams": measure_streams, "overload": measure_overload}

if __name__ == "__main__":
    main()
