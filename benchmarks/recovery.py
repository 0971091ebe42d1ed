"""How long do streams stand still when a process dies? Many deaths of each kind, under load.

Streams run all the time. In each round one process gets SIGKILL. A stream moves again where the longest time without a
token ends that touches what follows the death; after a gateway's death, with the first token of the resumed call, and
only those streams count that were resumed.

    python -m benchmarks.recovery [--model demo] [--rounds 10] [--streams 8] [--json [FILE]] [engine flags ...]
"""

import argparse
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagewire_client import Client, LocalService, RequestError, SamplingParams
from pagewire_client.bench.environment import describe_environment
from pagewire_client.cli.bench.output import show
from pagewire_client.types import EngineState, Process

VICTIMS = ("worker-0", "scheduler", "gateway-0")
_FLAGS = ("--log-level", "warning", "--no-progress")
_START_S = 600.0
_RECOVERY_S = 120.0
_POLL_S = 0.05
# A start counts as one that worked after five seconds; the next one waits longer if it comes sooner.
_CALM_S = 6.0
_TOKENS_AFTER = 5


@dataclass(slots=True)
class Reader:
    """Reads one stream after another. Times are of the clock that also tells when processes started."""

    client: Client
    seed: int
    max_tokens: int
    arrivals_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    error: str = ""
    is_stopping: bool = False

    def run(self) -> None:
        """Until told to stop; the body of a thread."""
        params = SamplingParams(temperature=1.0, seed=self.seed, max_tokens=self.max_tokens, ignore_eos=True)
        try:
            while not self.is_stopping:
                self._read(params)
        except RequestError as error:
            self.error = str(error)

    def _read(self, params: SamplingParams) -> None:
        with self.client.stream(f"Story number {self.seed}:", params) as stream:
            accepted = None
            for _ in stream:
                self.arrivals_s.append(_now_s())
                if stream.accepted is not accepted:
                    if accepted is not None:
                        self.resumed_s.append(_now_s())
                    accepted = stream.accepted
                if self.is_stopping:
                    return

    def moved_again_s(self, death_s: float) -> float:
        """When the longest time without a token ended that touches what follows the death."""
        gaps = [gap for gap in pairwise(list(self.arrivals_s)) if gap[1] > death_s]
        return max(gaps, key=lambda gap: gap[1] - gap[0])[1]

    def resumed_again_s(self, death_s: float) -> float | None:
        """When the first token of a resumed stream came after the death, if one was resumed."""
        return next((time_s for time_s in self.resumed_s if time_s > death_s), None)


@dataclass(frozen=True, slots=True)
class Death:
    """One round, in seconds by stream: until it moved again, from the death and from the start of the successor.

    `since_start_s` is None where streams go on without the successor. `others_lived`: no other process was replaced.
    """

    victim: str
    since_death_s: list[float]
    since_start_s: list[float] | None
    others_lived: bool


class RecoveryBench:
    """Kills processes of a running service."""

    def __init__(self, addresses: Sequence[str], num_streams: int, max_tokens: int, num_gateways: int) -> None:
        self._num_gateways = num_gateways
        self._client = Client(",".join(addresses))
        self._readers = [Reader(self._client, seed, max_tokens) for seed in range(num_streams)]
        self._threads = [threading.Thread(target=reader.run) for reader in self._readers]

    def __enter__(self) -> "RecoveryBench":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for reader in self._readers:
            reader.is_stopping = True
        for thread in self._threads:
            thread.join()
        self._client.close()

    def kill(self, victim: str) -> Death:
        """One round: calm, a death, and every stream moving again."""
        before = self._wait_until_calm()
        death_s = _now_s()
        os.kill(before[victim].pid, signal.SIGKILL)
        self._wait(lambda: self._is_replaced(victim, before[victim].pid), f"{victim} was not replaced")
        self._wait_for_tokens()
        after = self._processes()
        is_gateway = victim.startswith("gateway")
        find_end_s = Reader.resumed_again_s if is_gateway else Reader.moved_again_s
        ends_s = [end_s for reader in self._readers if (end_s := find_end_s(reader, death_s)) is not None]
        start_s = _start_s(after[victim].pid)
        needs_successor = not is_gateway or self._num_gateways == 1
        return Death(
            victim,
            [end_s - death_s for end_s in ends_s],
            [end_s - start_s for end_s in ends_s] if needs_successor else None,
            all(after[name].pid == process.pid for name, process in before.items() if name != victim),
        )

    def _wait_until_calm(self) -> dict[str, Process]:
        time.sleep(_CALM_S)
        self._wait_for_tokens()
        return self._processes()

    def _wait_for_tokens(self) -> None:
        """Until each stream has had some more."""
        counts = [len(reader.arrivals_s) for reader in self._readers]
        self._wait(
            lambda: all(
                len(reader.arrivals_s) >= count + _TOKENS_AFTER
                for reader, count in zip(self._readers, counts, strict=True)
            ),
            "streams do not move",
        )

    def _is_replaced(self, victim: str, pid: int) -> bool:
        info = self._client.server_info()
        (process,) = (process for process in info.processes if process.name == victim)
        return info.state is EngineState.READY and process.pid not in (0, pid)

    def _processes(self) -> dict[str, Process]:
        return {process.name: process for process in self._client.server_info().processes}

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        deadline_s = _now_s() + _RECOVERY_S
        while not condition():
            errors = [reader.error for reader in self._readers if reader.error]
            if errors:
                raise RuntimeError(f"a stream failed: {errors[0]}")
            if _now_s() > deadline_s:
                raise TimeoutError(f"{problem} within {_RECOVERY_S:.0f} s")
            time.sleep(_POLL_S)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _start_s(pid: int) -> float:
    """When the process was started, by the same clock, to one hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def make_table(deaths: Sequence[Death]) -> Table:
    """Median and 99th percentile over streams and rounds."""
    table = Table("dies", "rounds", "s from death, p50", "p99", "s from new start, p50", "p99", "others lived")
    for victim in dict.fromkeys(death.victim for death in deaths):
        rounds = [death for death in deaths if death.victim == victim]
        since_death_s = [value for death in rounds for value in death.since_death_s]
        since_start_s = [value for death in rounds for value in death.since_start_s or ()]
        table.add_row(
            victim,
            str(len(rounds)),
            *_percentiles(since_death_s),
            *_percentiles(since_start_s),
            "yes" if all(death.others_lived for death in rounds) else "no",
        )
    return table


def _percentiles(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f}", f"{ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]:.2f}"


def main() -> int:
    """Kill, measure, print."""
    options, engine_flags = _parse()
    console = Console(stderr=True, highlight=False)
    flags = [*_FLAGS, "--gateways", str(options.gateways), *engine_flags]
    deaths = []
    with LocalService(options.model, flags=flags) as service:
        service.wait_until_ready(_START_S)
        with RecoveryBench(service.addresses, options.streams, options.max_tokens, options.gateways) as bench:
            for number in range(options.rounds * len(options.victims)):
                deaths.append(bench.kill(options.victims[number % len(options.victims)]))
                worst_s = max(deaths[-1].since_death_s, default=0.0)
                console.print(f"{number + 1}: {deaths[-1].victim} died; all moved again after {worst_s:.2f} s")
    environment = describe_environment(
        engine_flags=engine_flags, num_gateway_processes=options.gateways, num_client_processes=1
    )
    report = {
        "streams": options.streams,
        "max_tokens": options.max_tokens,
        "deaths": [dataclasses.asdict(death) for death in deaths],
    }
    show("recovery", report, environment, make_table(deaths), options.json)
    return 0


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=10, help="deaths of each kind")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument(
        "--max-tokens", type=int, default=64, help="of each stream; what it has by then is computed again"
    )
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS)
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or print it in place of the table"
    )
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
