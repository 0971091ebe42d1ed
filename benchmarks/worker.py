"""How long do the steps of the bare model runner take, without scheduler, gateway and sockets?

python -m benchmarks.worker --model MODEL [--dtype float16] [--threads 2] [--batch-sizes 1 8 32] [--profile]
"""

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from gpu_worker.config import ATTENTION_BACKENDS, DTYPES, WorkerConfig
from gpu_worker.cpu_limits import usable_cores
from gpu_worker.model_runner import ModelRunner
from pagewire.ipc.requests import Sampling
from pagewire.ipc.steps import AddedSequence, EngineConfig, StepBatch

BLOCK_SIZE = 16


class Bench:
    """Drives a loaded runner with step batches made by hand."""

    def __init__(self, runner: ModelRunner, vocab_size: int, temperature: float) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._sampling = Sampling(temperature, 0, 1.0, 0.0, 0)
        self._random = np.random.default_rng(0)

    def prefill(self, num_seqs: int, length: int, room: int) -> float:
        """Seconds to compute num_seqs fresh prompts of `length` tokens, with blocks for `room` more each."""
        self._runner.reset_slots()
        num_blocks = -(-(length + room) // BLOCK_SIZE)
        added = [
            AddedSequence(
                slot,
                str(slot),
                _int_bytes(self._random.integers(0, self._vocab_size, length)),
                length,
                0,
                _int_bytes(np.arange(num_blocks) + slot * num_blocks),
                self._sampling,
            )
            for slot in range(num_seqs)
        ]
        return self._time(num_seqs, length, added)

    def decode(self, num_seqs: int) -> float:
        """Seconds of one step that computes one token of each sequence."""
        return self._time(num_seqs, 1, [])

    def _time(self, num_seqs: int, count: int, added: list[AddedSequence]) -> float:
        slots = _int_bytes(np.arange(num_seqs))
        counts = _int_bytes(np.full(num_seqs, count))
        batch = StepBatch(0, b"", added, b"", b"", slots, counts, bytes([1]) * num_seqs)
        started = time.perf_counter()
        self._runner.launch(batch).output()
        return time.perf_counter() - started


def main() -> None:
    """Print a table of decode steps and one of prefills."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    config = WorkerConfig(
        model=arguments.model,
        scheduler_address="",
        cache_dir=Path.home() / ".cache" / "pagewire",
        threads=arguments.threads,
        dtype=arguments.dtype,
        attention_backend=arguments.attention_backend,
        load_format=arguments.load_format,
    )
    runner = ModelRunner(config)
    started = time.perf_counter()
    max_num_seqs = max(arguments.batch_sizes)
    engine = EngineConfig(BLOCK_SIZE, max_num_seqs, 8192, None, None)
    num_blocks, model = runner.load(engine, _no_progress)
    runner.allocate(num_blocks, _no_progress)
    print(f"loaded in {time.perf_counter() - started:.1f} s, dtype {arguments.dtype}, {arguments.threads} threads\n")
    bench = Bench(runner, model.vocab_size, arguments.temperature)
    for line in _decode_table(bench, arguments):
        print(line, flush=True)
    print()
    for line in _prefill_table(bench, arguments):
        print(line, flush=True)


def _no_progress(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def _decode_table(bench: Bench, arguments: argparse.Namespace) -> Iterator[str]:
    yield f"{'batch':>8} {'context':>8} {'step ms':>9} {'best ms':>9} {'tok/s':>9}"
    for num_seqs in arguments.batch_sizes:
        bench.prefill(num_seqs, arguments.context, arguments.steps + 1)
        times = _profiled(arguments.profile, lambda n=num_seqs: [bench.decode(n) for _ in range(arguments.steps)])
        median = statistics.median(times)
        yield (
            f"{num_seqs:>8} {arguments.context:>8} {median * 1e3:>9.2f} {min(times) * 1e3:>9.2f} "
            f"{num_seqs / median:>9.0f}"
        )


def _prefill_table(bench: Bench, arguments: argparse.Namespace) -> Iterator[str]:
    yield f"{'prompt':>8} {'best ms':>9} {'tok/s':>9}"
    for length in arguments.prompts:
        seconds = min(bench.prefill(1, length, 1) for _ in range(arguments.repeats))
        yield f"{length:>8} {seconds * 1e3:>9.1f} {length / seconds:>9.0f}"


def _profiled(wanted: bool, run: Callable[[], list[float]]) -> list[float]:
    if not wanted:
        return run()
    with cProfile.Profile() as profile:
        times = run()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return times


def _int_bytes(numbers: np.ndarray) -> bytes:
    return numbers.astype("<i4").tobytes()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--attention-backend", default="auto", choices=ATTENTION_BACKENDS)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=128, help="tokens before the first decode step")
    parser.add_argument("--steps", type=int, default=32, help="decode steps to measure")
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 512, 1500])
    parser.add_argument("--repeats", type=int, default=3, help="prefills to take the best of")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--profile", action="store_true", help="print where Python's time goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
