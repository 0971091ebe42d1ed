"""Greedy output of the demo model equals float32 transformers token for token, however the work is cut up.

Real scheduler and worker processes; the expected tokens are in tests/golden (made by make_smollm2.py beside them), and
`test_golden_tokens_are_those_of_transformers` makes some of them again.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.bare_gateway import BareGateway, make_submit
from tests.fakes.patience import PATIENCE_S

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
NUM_NEW_TOKENS = 64

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]


@dataclass
class Engine:
    """A scheduler and a worker on the demo model, and a gateway socket."""

    gateway: BareGateway
    num_blocks: int
    num_streams: int = 0

    def run(self, cases: list[int], at_once: int) -> dict[int, list[int]]:
        """Run golden cases with so many in flight; output tokens by case, and that all blocks are free again."""
        streams: dict[int, int] = {}
        queue = list(cases)
        while queue or any(stream not in self.gateway.ended for stream in streams):
            while queue and sum(stream not in self.gateway.ended for stream in streams) < at_once:
                case = queue.pop(0)
                self.num_streams += 1
                streams[self.num_streams] = case
                prompt = GOLDEN[case]["prompt_ids"]
                self.gateway.send(make_submit(self.num_streams, prompt, max_tokens=NUM_NEW_TOKENS))
            before = len(self.gateway.ended)
            self.gateway.wait(lambda before=before: len(self.gateway.ended) > before)
        return {case: self.gateway.tokens[stream] for stream, case in streams.items()}

    def num_cached_tokens(self) -> int:
        """Prompt tokens that streams so far took from the prefix cache."""
        return sum(ended.num_cached_tokens for ended in self.gateway.ended.values())


@contextmanager
def engine(model: Path, folder: Path, *scheduler_flags: str) -> Iterator[Engine]:
    requests, workers = f"ipc://{folder}/r", f"ipc://{folder}/w"
    scheduler = [sys.executable, "-m", "scheduler_service.core", "--request-address", requests]
    worker = [sys.executable, "-m", "gpu_worker", "--model", str(model), "--scheduler-address", workers]
    processes = [
        subprocess.Popen([*scheduler, "--worker-address", workers, *scheduler_flags], stdout=subprocess.DEVNULL),
        subprocess.Popen([*worker, "--device", "cpu", "--dtype", "float32"]),
    ]
    gateway = BareGateway(requests)
    try:
        gateway.wait_ready()
        assert gateway.status is not None
        assert gateway.status.limits is not None
        yield Engine(gateway, gateway.status.limits.num_blocks)
        gateway.status = None
        gateway.wait(lambda: gateway.status is not None and gateway.status.load.num_running == 0)
        assert gateway.status.load.num_free_blocks == gateway.status.limits.num_blocks
    finally:
        gateway.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE_S)


def check(outputs: dict[int, list[int]]) -> None:
    wrong = [case for case, tokens in outputs.items() if tokens != GOLDEN[case]["output_ids"]]
    assert not wrong, f"cases {wrong} differ; margins {[GOLDEN[case]['margin'] for case in wrong]}"


ALL = list(range(len(GOLDEN)))


def test_golden_covers_what_it_should() -> None:
    lengths = sorted(len(case["prompt_ids"]) for case in GOLDEN)
    assert len(GOLDEN) >= 20
    assert lengths[0] == 5
    assert lengths[-1] == 1500
    assert all(len(case["output_ids"]) == NUM_NEW_TOKENS for case in GOLDEN)


def test_alone(demo_model: Path, tmp_path: Path) -> None:
    with engine(demo_model, tmp_path, "--no-prefix-caching") as running:
        check(running.run(ALL, at_once=1))


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("chunk_size", [16, 256, 8192])
def test_concurrent_cold_then_warm(demo_model: Path, tmp_path: Path, chunk_size: int, block_size: int) -> None:
    order = random.Random(chunk_size + block_size).sample(ALL, len(ALL))
    flags = ["--max-num-seqs", "12", "--max-num-batched-tokens", str(chunk_size), "--block-size", str(block_size)]
    with engine(demo_model, tmp_path, *flags) as running:
        check(running.run(order, at_once=12))
        cold = running.num_cached_tokens()
        check(running.run(order[::-1], at_once=7))
        prompt_blocks = sum((len(GOLDEN[case]["prompt_ids"]) - 1) // block_size for case in ALL)
        assert running.num_cached_tokens() - cold == prompt_blocks * block_size


def test_synchronous_scheduling(demo_model: Path, tmp_path: Path) -> None:
    with engine(demo_model, tmp_path, "--no-async-scheduling", "--max-num-seqs", "8") as running:
        check(running.run(ALL[:16], at_once=8))


@pytest.mark.parametrize("caching", [[], ["--no-prefix-caching"]])
def test_preemption(demo_model: Path, tmp_path: Path, caching: list[str]) -> None:
    # Prompts of at most 300 tokens; 30 blocks hold 480 tokens, so they push each other out all the time.
    short = [case for case in ALL if len(GOLDEN[case]["prompt_ids"]) <= 300]
    with engine(demo_model, tmp_path, "--num-blocks", "30", "--max-num-seqs", "16", *caching) as running:
        check(running.run(short, at_once=16))


def test_golden_tokens_are_those_of_transformers(demo_model: Path) -> None:
    from tests.golden.make_smollm2 import generate, load_model

    model = load_model(demo_model)
    for case in (0, 4, 9, len(GOLDEN) - 1):
        assert generate(model, GOLDEN[case]["prompt_ids"])[0] == GOLDEN[case]["output_ids"]
