"""How fast is Pagewire on this GPU, beside its peers? The whole table in ten minutes, through the whole gRPC stack.

Models are shapes with random weights. Peers' figures were measured on one H100 80GB: vLLM 0.26 with its default
settings, nano-vllm (April 2026) with FlashAttention-3, streams through vLLM's HTTP server with its own client. "limit"
is every live KV byte and the weights once per step at 3.02 TB/s, and prefill at 783 TFLOP/s.

    python -m benchmarks.gpu_table [--json FILE] [--gateways 4] [--client-processes 4] [--smoke] [engine flags ...]
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pagewire_client import LocalService, PagewireError
from pagewire_client.bench.environment import count_gateways, describe_environment
from pagewire_client.bench.offline import OfflineRun, run_offline
from pagewire_client.bench.report import make_report
from pagewire_client.bench.startup import Stopwatch
from pagewire_client.bench.streaming import run_streams
from pagewire_client.bench.workload import nano_workload, random_workload
from pagewire_client.cli.connection import read_vocab_size
from pagewire_client.progress import BatchProgress

PEER_NAMES = ("vLLM 0.26", "nano-vllm", "limit")
Peers = tuple[float | str | None, float | str | None, float | str | None]
NO_PEERS: Peers = (None, None, None)

# Figure: what it is of each peer, in the order of PEER_NAMES.
PEERS: dict[str, Peers] = {
    "start to ready, qwen3-0.6b, s": ("96-108", "44-48", None),
    "start to ready, qwen3-8b, s": ("96-108", "44-48", None),
    "nano-bench, qwen3-0.6b, tok/s": (17_000, 13_422, 25_700),
    "nano-bench with prompts cached, qwen3-0.6b, tok/s": (17_972, 16_057, 26_800),
    "nano-bench, qwen3-8b, tok/s": (7_564, 6_366, 9_700),
    "nano-bench with prompts cached, qwen3-8b, tok/s": (None, 7_818, 11_800),
    "1 stream, qwen3-0.6b, tok/s": (386, None, None),
    "1 stream, qwen3-0.6b, ms per token": (2.60, None, None),
    "1 stream, qwen3-0.6b, ms to first token": (19.9, None, None),
    "64 streams, qwen3-0.6b, tok/s": (13_511, None, None),
    "64 streams, qwen3-0.6b, ms per token": (4.33, None, None),
    "64 streams, qwen3-0.6b, ms to first token": (190, None, None),
    "256 streams, qwen3-0.6b, tok/s": (12_905, None, None),
    "256 streams, qwen3-0.6b, ms per token": (16.96, None, None),
    "256 streams, qwen3-0.6b, ms to first token": (669, None, None),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `streams`: so many at a time, and requests in all, of `stream_len` tokens in and out."""

    small: str
    large: str
    nano_requests: int
    num_repeats: int
    streams: tuple[tuple[int, int], ...]
    stream_len: int
    flags: tuple[str, ...]
    large_flags: tuple[str, ...] = ()


FULL = Scale(
    small="qwen3-0.6b",
    large="qwen3-8b",
    nano_requests=256,
    num_repeats=3,
    streams=((1, 8), (64, 256), (256, 768)),
    stream_len=512,
    flags=("--max-model-len", "4096", "--max-num-seqs", "512"),
    # The larger model's steps are long anyway. vLLM takes as many.
    large_flags=("--max-num-batched-tokens", "8192"),
)
# For a CPU: shows that the script works, and measures nothing.
SMOKE = Scale(
    small="tiny",
    large="tiny",
    nano_requests=2,
    num_repeats=1,
    streams=((1, 1), (2, 4)),
    stream_len=16,
    flags=("--max-model-len", "2048", "--max-num-seqs", "16", "--cpu-memory-gib", "0.1", "--threads", "1"),
)


class GpuTable:
    """Measures and collects. A figure that fails is noted and the others go on, until the time is up."""

    def __init__(self, scale: Scale, options: argparse.Namespace, engine_flags: Sequence[str]) -> None:
        self.scale = scale
        self.rows: list[dict[str, Any]] = []
        self.details: list[dict[str, Any]] = []
        self.num_gateways = options.gateways
        self._num_clients = options.client_processes
        self._flags = [*scale.flags, "--gateways", str(options.gateways), *engine_flags]
        self._deadline_s: float = time.monotonic() + options.budget_s
        self._console = Console(stderr=True, highlight=False)

    @property
    def engine_flags(self) -> list[str]:
        """Of every service here."""
        return self._flags

    def measure(self) -> None:
        """All rows."""
        scale = self.scale
        with suppress(PagewireError), self._service(scale.small) as addresses:
            self._attempt(lambda: self._nano(addresses, scale.small, scale.num_repeats, cached=False))
            self._attempt(lambda: self._nano(addresses, scale.small, 1, cached=True))
            for concurrency, num_requests in scale.streams:
                self._attempt(lambda c=concurrency, n=num_requests: self._streams(addresses, c, n))  # type: ignore[misc]
        with suppress(PagewireError), self._service(scale.large, scale.large_flags) as addresses:
            self._attempt(lambda: self._nano(addresses, scale.large, 1, cached=False))
            self._attempt(lambda: self._nano(addresses, scale.large, 1, cached=True))

    def table(self) -> Table:
        """All rows beside the peers."""
        table = Table("figure", "pagewire", *PEER_NAMES, title=f"gateway processes: {self.num_gateways}, "
                      f"client processes of streams: {self._num_clients}")  # fmt: skip
        for row in self.rows:
            cells = (_cell(row[name]) for name in ("pagewire", *PEER_NAMES))
            table.add_row(row["figure"], *cells)
        return table

    @contextmanager
    def _service(self, model: str, flags: Sequence[str] = ()) -> Iterator[list[str]]:
        self._say(f"starting {model}")
        stopwatch = Stopwatch()
        try:
            flags = ["--log-level", "warning", "--no-progress", *self._flags, *flags]
            with LocalService(f"dummy:{model}", flags=flags) as it:
                it.wait_until_ready(self._left_s, stopwatch.stage)
                start = stopwatch.finish(it.addresses[0], self._left_s)
                self._add(f"start to ready, {model}, s", start.ready_s)
                self._add_details("startup", model=model, **dataclasses.asdict(start))
                self.num_gateways = asyncio.run(count_gateways(it.addresses))
                yield it.addresses
        except PagewireError as error:
            self._note_failure(error)
            raise

    def _attempt(self, measure: Callable[[], None]) -> None:
        try:
            measure()
        except (PagewireError, TimeoutError) as error:
            self._note_failure(error)

    def _nano(self, addresses: Sequence[str], model: str, num_repeats: int, *, cached: bool) -> None:
        figure = f"nano-bench{' with prompts cached' if cached else ''}, {model}, tok/s"
        self._say(figure)

        def say_run(run: OfflineRun) -> None:
            self._say(f"  {run.output_tokens_per_s:,.0f} in {run.wall_s:.2f} s")

        work = run_offline(
            addresses[0],
            nano_workload(self.scale.nano_requests),
            num_repeats=num_repeats,
            prompts_cached=cached,
            on_run=say_run,
        )
        report = asyncio.run(asyncio.wait_for(work, self._left_s))
        self._add(figure, report.output_tokens_per_s)
        self._add_details("offline", model=model, **dataclasses.asdict(report))

    def _streams(self, addresses: Sequence[str], concurrency: int, num_requests: int) -> None:
        length = self.scale.stream_len
        name = f"{concurrency} stream{'s' if concurrency > 1 else ''}, {self.scale.small}"
        self._say(f"{name}, {length} tokens in and out")
        vocab_size = read_vocab_size(addresses[0])
        # Prompts differ from those of the other rows, so that none are cached.
        workload = random_workload(
            num_requests, length, length, temperature=0.0, seed=concurrency, vocab_size=vocab_size
        )
        with BatchProgress(self._console, num_requests, self._console.is_terminal) as progress:
            work = run_streams(addresses, workload, concurrency, self._num_clients, progress)
            traces = asyncio.run(asyncio.wait_for(work, self._left_s))
        report = make_report(workload.summary, concurrency, traces)
        self._add(f"{name}, tok/s", report.output_tokens_per_s)
        self._add(f"{name}, ms per token", report.time_per_output_token.p50_ms)
        self._add(f"{name}, ms to first token", report.time_to_first_token.p50_ms)
        self._add_details("serve", **dataclasses.asdict(report))

    @property
    def _left_s(self) -> float:
        return max(self._deadline_s - time.monotonic(), 0.0)

    def _add(self, figure: str, value: float) -> None:
        peers = dict(zip(PEER_NAMES, PEERS.get(figure, NO_PEERS), strict=True))
        self.rows.append({"figure": figure, "pagewire": value, **peers})
        self._say(f"  {figure}: {value:,.2f}")

    def _add_details(self, bench: str, **report: Any) -> None:
        self.details.append({"bench": bench, **report})

    def _note_failure(self, error: Exception) -> None:
        self.details.append({"error": str(error) or type(error).__name__})
        self._say(f"  failed: {self.details[-1]['error']}")

    def _say(self, text: str) -> None:
        self._console.print(text)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures with their details")
    parser.add_argument("--gateways", type=int, default=4, help="gateway processes")
    parser.add_argument("--client-processes", type=int, default=4, help="of streams")
    parser.add_argument("--budget-s", type=float, default=560.0, help="seconds in all; what is left then is left out")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, for a CPU")
    options, engine_flags = parser.parse_known_args()
    gpu_table = GpuTable(SMOKE if options.smoke else FULL, options, engine_flags)
    try:
        gpu_table.measure()
    finally:
        Console(highlight=False, width=110).print(gpu_table.table())
        if options.json is not None:
            environment = describe_environment(
                engine_flags=gpu_table.engine_flags,
                num_gateway_processes=gpu_table.num_gateways,
                num_client_processes=options.client_processes,
            )
            measured = {"rows": gpu_table.rows, "details": gpu_table.details}
            report = {"bench": "gpu_table", "environment": dataclasses.asdict(environment), **measured}
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in details for details in gpu_table.details))


if __name__ == "__main__":
    sys.exit(main())
