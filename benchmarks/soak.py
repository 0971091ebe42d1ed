"""Do gateway and scheduler keep their size over many short requests, whatever their callers do?

A real gateway and a real scheduler serve a worker that answers at once. Of the callers, most read 1 to 16 tokens to the
end; the others cancel, drop their connection, are killed, let deadlines pass, stop at texts, err, resume and take
streams over. After every so many requests all callers wait, the service must be idle with every block free, and each
process is measured. The exit status is 1 if one has grown by more than 5 % since the first measurement.

    python -m benchmarks.soak --requests 50000 [--every 5000] [--concurrency 32] [--seed 0] [--json [FILE]]
"""

import argparse
import asyncio
import dataclasses
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.callers import KINDS, Callers
from benchmarks.stub_service import StubService
from pagewire_client import AsyncClient
from pagewire_client.bench.environment import describe_environment
from pagewire_client.cli.bench.output import show
from pagewire_client.progress import BatchProgress

MOST_GROWTH = 0.05
_MAX_NUM_SEQS = 64
# Few, so that the prefix cache is full by the first measurement.
_NUM_BLOCKS = 4096
_IDLE_S = 20.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory after so many requests."""

    num_requests: int
    gateway_bytes: int
    scheduler_bytes: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak did and found. `kinds`: requests by kind of caller."""

    samples: list[Sample]
    kinds: dict[str, int]
    wall_s: float

    def growth(self) -> dict[str, float]:
        """By process: the last sample over the first, less one."""
        first, last = self.samples[0], self.samples[-1]
        return {
            "gateway": last.gateway_bytes / first.gateway_bytes - 1,
            "scheduler": last.scheduler_bytes / first.scheduler_bytes - 1,
        }


async def soak(
    service: StubService, num_requests: int, every: int, concurrency: int, seed: int, progress: BatchProgress
) -> Soak:
    """Run the requests, so many callers at a time.

    Args:
        every: a sample is taken after so many requests.

    Raises:
        AssertionError: a request did not end as it should, or something was left of them.
    """
    choice = random.Random(seed)
    kinds: Counter[str] = Counter()
    samples: list[Sample] = []
    started_s = time.monotonic()
    callers = Callers(service.address, choice, progress.add_tokens)
    async with AsyncClient(service.address) as client:
        await client.wait_until_ready(_IDLE_S)
        while kinds.total() < num_requests:
            plan = _plan(choice, min(kinds.total() + every, num_requests), kinds)
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(_call(callers, plan, progress))
            await _wait_until_idle(client)
            sample = Sample(kinds.total(), service.gateway.memory_info().rss, service.scheduler.memory_info().rss)
            samples.append(sample)
    await callers.close()
    return Soak(samples, dict(kinds), time.monotonic() - started_s)


def _plan(choice: random.Random, num_requests: int, kinds: Counter[str]) -> Iterator[str]:
    """Kinds of callers, until they have made so many requests in all."""
    names = list(KINDS)
    weights = [kind.share / kind.num_requests for kind in KINDS.values()]
    while kinds.total() < num_requests:
        (name,) = choice.choices(names, weights)
        kinds[name] += KINDS[name].num_requests
        yield name


async def _call(callers: Callers, plan: Iterator[str], progress: BatchProgress) -> None:
    for name in plan:
        await KINDS[name].run(callers)
        for _ in range(KINDS[name].num_requests):
            progress.add_done()


async def _wait_until_idle(client: AsyncClient) -> None:
    """Nothing may run or wait, or hold a block, soon after the last caller has left."""
    deadline_s = time.monotonic() + _IDLE_S
    while True:
        info = await client.server_info()
        load, limits = info.load, info.limits
        if (load.num_running, load.num_waiting, load.num_free_blocks) == (0, 0, limits.num_blocks):
            return
        assert time.monotonic() < deadline_s, f"all callers have left, and there is {load} of {limits}"
        await asyncio.sleep(_POLL_S)


def make_table(samples: Sequence[Sample]) -> Table:
    """Resident memory, and how it compares with the first sample."""
    table = Table("requests", "gateway MiB", "", "scheduler MiB", "", title="resident memory")
    first = samples[0]
    for sample in samples:
        table.add_row(
            f"{sample.num_requests:,}",
            f"{sample.gateway_bytes / 2**20:.2f}",
            f"{sample.gateway_bytes / first.gateway_bytes - 1:+.1%}",
            f"{sample.scheduler_bytes / 2**20:.2f}",
            f"{sample.scheduler_bytes / first.scheduler_bytes - 1:+.1%}",
        )
    return table


def main() -> int:
    """Run, print, judge."""
    options = _parse()
    stderr = Console(stderr=True, highlight=False)
    with (
        StubService(_MAX_NUM_SEQS, _NUM_BLOCKS) as service,
        BatchProgress(stderr, options.requests, stderr.is_terminal) as progress,
    ):
        work = soak(service, options.requests, options.every, options.concurrency, options.seed, progress)
        result = asyncio.run(work)
    environment = describe_environment(num_gateway_processes=1, num_client_processes=1)
    show("soak", dataclasses.asdict(result), environment, make_table(result.samples), options.json)
    grown = [f"{name} by {growth:.1%}" for name, growth in result.growth().items() if growth > MOST_GROWTH]
    stderr.print(f"{result.wall_s:.0f} s; requests by caller: {result.kinds}")
    stderr.print(f"grown by more than {MOST_GROWTH:.0%}: {', '.join(grown) or 'none'}")
    return int(bool(grown))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--every", type=int, default=5_000, help="requests between two measurements")
    parser.add_argument("--concurrency", type=int, default=32, help="callers at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what the callers do")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON in place of the table, or write it"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
