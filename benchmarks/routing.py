"""Which share of the prompts do several engines find in their caches, and how even is their load, by routing policy?

Real gateway and scheduler processes; the workers compute nothing and take as long for a step as a slow GPU might. Each
workload runs under each policy over three engines, and once over one engine with three times the blocks, the sequences
and the speed: what is found in its cache is the most that can be.

    python -m benchmarks.routing [--seconds 25] [--gateways 2] [--json [FILE]] [--svg FILE]

The load of an engine is measured in two ways, over the time after the warm-up: the sequences that it ran, averaged over
time, and the tokens that it computed. Imbalance is that of the engine that has most, over the mean of the engines.
"""

import argparse
import asyncio
import dataclasses
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.routing_plot import Figures, draw
from benchmarks.routing_workloads import WORKLOADS, Workload
from benchmarks.stub_service import StubService
from pagewire.ipc.steps import StepBatch
from pagewire.v1 import generate_pb2, inference_pb2_grpc
from pagewire_client.bench.environment import describe_environment
from pagewire_client.cli.bench.output import show
from scheduler_service.gateway.engines.routing import RoutingPolicy

SINGLE = "one engine"
NUM_ENGINES = 3
_START_S = 120.0
_NUM_BLOCKS, _MAX_NUM_SEQS, _STEP_TOKENS = 1000, 32, 512
# Seconds that a step takes, that each token adds, and each sequence.
_STEP_S, _TOKEN_S, _SEQUENCE_S = 0.015, 0.00025, 0.0004


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    ttft_s: float
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one workload got under one policy. `hit_rate`: prompt tokens that were found in a cache, of all."""

    workload: str
    routing: str
    num_requests: int
    hit_rate: float
    sequence_imbalance: float
    token_imbalance: float
    mean_sequences: float
    ttft_p50_ms: float
    ttft_p99_ms: float

    @property
    def figures(self) -> Figures:
        """What is drawn of it; of the two imbalances the worse."""
        imbalance = max(self.sequence_imbalance, self.token_imbalance)
        return Figures(self.workload, self.routing, self.hit_rate, imbalance, self.ttft_p99_ms)


class Pace:
    """How long a worker takes for a step, `speed` times as fast as one of several would; counts what it did."""

    def __init__(self, context: SpawnContext, speed: int) -> None:
        self._speed = speed
        self._sequence_s: Synchronized[float] = context.Value("d", 0.0)
        self._num_tokens: Synchronized[int] = context.Value("q", 0)
        self._done_s = 0.0

    def __call__(self, batch: StepBatch) -> float:
        """When this step is done: they are done one after the other."""
        num_tokens, num_sequences = int(np.frombuffer(batch.num_tokens, "<i4").sum()), len(batch.slots) // 4
        seconds = (_STEP_S + _TOKEN_S * num_tokens + _SEQUENCE_S * num_sequences) / self._speed
        self._done_s = max(self._done_s, time.monotonic()) + seconds
        self._sequence_s.value += num_sequences * seconds
        self._num_tokens.value += num_tokens
        return self._done_s

    @property
    def work(self) -> tuple[float, int]:
        """So far: the time that sequences ran, summed over them, and the tokens that were computed."""
        return self._sequence_s.value, self._num_tokens.value


class Callers:
    """Send requests over all gateways in turn."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(address) for address in addresses]
        self._stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels]
        self._num_sent = 0
        self.answers: list[Answer] = []

    async def ask(self, prompt: list[int], max_tokens: int, *, counts: bool) -> list[int]:
        """One request; returns its output. What counts is among the answers."""
        self._num_sent += 1
        request = generate_pb2.GenerateRequest(
            token_ids=generate_pb2.TokenIds(ids=prompt),
            stopping=generate_pb2.StopConditions(max_tokens=max_tokens, ignore_eos=True),
        )
        sent_s, ttft_s = time.monotonic(), 0.0
        output: list[int] = []
        async for event in self._stubs[self._num_sent % len(self._stubs)].Generate(request, wait_for_ready=True):
            if event.delta.token_ids:
                ttft_s = ttft_s or time.monotonic() - sent_s
                output += event.delta.token_ids
            elif counts and event.HasField("finished"):
                usage = event.finished.usage
                self.answers.append(Answer(ttft_s, usage.num_prompt_tokens, usage.num_cached_tokens))
        return output

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()


def measure(name: str, workload: Workload, routing: str, num_gateways: int, warm_up_s: float, seconds: float) -> Result:
    """Run one workload under one policy, or over one engine as large as all together."""
    context = multiprocessing.get_context("spawn")
    scale, policy = (NUM_ENGINES, RoutingPolicy.PREFIX) if routing == SINGLE else (1, routing)
    paces = [Pace(context, scale) for _ in range(NUM_ENGINES // scale)]
    limits = ["--max-num-batched-tokens", str(scale * _STEP_TOKENS)]
    with StubService(
        scale * _MAX_NUM_SEQS,
        scale * _NUM_BLOCKS,
        num_gateways,
        flags=limits,
        paces=paces,
        gateway_flags=["--routing", policy],
    ) as service:
        answers, work = asyncio.run(_run(workload, service.addresses, paces, warm_up_s, seconds))
    times_ms = sorted(1e3 * answer.ttft_s for answer in answers)
    return Result(
        name,
        routing,
        len(answers),
        sum(answer.num_cached_tokens for answer in answers) / sum(answer.num_prompt_tokens for answer in answers),
        _imbalance([sequence_s for sequence_s, _ in work]),
        _imbalance([num_tokens for _, num_tokens in work]),
        sum(sequence_s for sequence_s, _ in work) / len(work) / seconds,
        times_ms[len(times_ms) // 2],
        times_ms[len(times_ms) * 99 // 100],
    )


async def _run(
    workload: Workload, addresses: Sequence[str], paces: Sequence[Pace], warm_up_s: float, seconds: float
) -> tuple[list[Answer], list[tuple[float, int]]]:
    """Answers to what counts, and what each engine did while it began."""
    callers = Callers(addresses)
    await _wait_for_engines(callers, paces)
    running = asyncio.create_task(workload.run(callers.ask, warm_up_s, seconds))
    await asyncio.sleep(warm_up_s)
    before = [pace.work for pace in paces]
    await asyncio.sleep(seconds)
    after = [pace.work for pace in paces]
    await running
    await callers.close()
    return callers.answers, [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]


async def _wait_for_engines(callers: Callers, paces: Sequence[Pace]) -> None:
    """Until each has computed something."""
    deadline_s = time.monotonic() + _START_S
    number = 0
    while not all(pace.work[1] for pace in paces):
        number += 1
        try:
            await callers.ask([number] * 20, 1, counts=False)
        except grpc.aio.AioRpcError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.1)


def _imbalance(values: Sequence[float]) -> float:
    return max(values) / statistics.mean(values)


def make_table(results: Sequence[Result]) -> Table:
    """A row for each workload and policy."""
    table = Table(
        "workload",
        "routing",
        "cached",
        "of one\nengine's",
        "imbalance:\nsequences",
        "\ntokens",
        "sequences\nan engine",
        "TTFT ms\np50",
        "\np99",
    )
    most = {result.workload: result.hit_rate for result in results if result.routing == SINGLE}
    for result in results:
        table.add_row(
            result.workload,
            result.routing,
            f"{result.hit_rate:.1%}",
            f"{result.hit_rate / most[result.workload]:.1%}",
            f"{result.sequence_imbalance:.2f}",
            f"{result.token_imbalance:.2f}",
            f"{result.mean_sequences:.1f}",
            f"{result.ttft_p50_ms:.0f}",
            f"{result.ttft_p99_ms:.0f}",
            end_section=result.routing == RoutingPolicy.RANDOM,
        )
    return table


def main() -> int:
    """Measure, print, draw."""
    flags = _parse()
    console = Console(stderr=True, highlight=False)
    results = []
    for name, workload in WORKLOADS.items():
        for routing in (SINGLE, *RoutingPolicy):
            results.append(measure(name, workload, routing, flags.gateways, flags.warm_up, flags.seconds))
            console.print(f"{name}, {routing}: {results[-1].hit_rate:.1%} found in cache")
    environment = describe_environment(num_gateway_processes=flags.gateways, num_client_processes=1)
    report = {"seconds": flags.seconds, "results": [dataclasses.asdict(result) for result in results]}
    show("routing", report, environment, make_table(results), flags.json)
    if flags.svg is not None:
        flags.svg.write_text(draw([result.figures for result in results]), encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=25.0, help="of each run, in which what counts begins")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before these")
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the figures")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or print it in place of the table"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
