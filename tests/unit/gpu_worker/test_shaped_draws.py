"""Penalties and log probabilities of whole models on a CPU: those of transformers, to the bit the same however run."""

import random
from pathlib import Path

import pytest

from pagewire.ipc.requests import Penalties, Sampling
from tests.unit.core.harness import Harness
from tests.unit.gpu_worker.launched_steps import run_prompts
from tests.unit.gpu_worker.shaped_cases import MIXED, check_records, complete, greedy
from tests.unit.gpu_worker.tiny_checkpoint import VOCAB, write_checkpoint

NUM_TOKENS = 20
GENERATOR = random.Random(5)
PROMPTS = [
    [GENERATOR.randrange(VOCAB) for _ in range(length)]
    for length in (1, 3, 8, 17, 40, 6, 21, 2, 9, 33, 5, 12, 7, 19, 4, 11)
]
SAMPLINGS = [MIXED[index % len(MIXED)] for index in range(len(PROMPTS))]


def run(folder: Path, prompts: list[list[int]], samplings: list[Sampling], **settings: object) -> Harness:
    sizes: dict[str, object] = {"num_blocks": 300, "block_size": 4, "chunk": 64}
    return run_prompts(folder, prompts, NUM_TOKENS, samplings, **(sizes | settings))  # type: ignore[arg-type]


def test_tokens_and_logprobs_are_those_of_transformers(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    harness = run(tmp_path, PROMPTS, SAMPLINGS)
    changed = 0
    for stream, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        expected = complete(model, prompt, NUM_TOKENS, sampling)
        assert harness.tokens[stream] == expected.token_ids
        check_records(harness.logprobs[stream], sampling.num_logprobs, expected)
        changed += expected.token_ids != complete(model, prompt, NUM_TOKENS, greedy(None, None)).token_ids
    assert changed >= 6


@pytest.mark.parametrize(
    "settings",
    [{"chunk": 7, "max_num_seqs": 4}, {"num_blocks": 24}, {"async_scheduling": False}],
    ids=["chunks", "preemption", "synchronous"],
)
def test_logprobs_are_the_same_to_the_bit_however_they_are_computed(tmp_path: Path, settings: dict) -> None:
    write_checkpoint(tmp_path)
    plain, other = run(tmp_path, PROMPTS, SAMPLINGS), run(tmp_path, PROMPTS, SAMPLINGS, **settings)
    assert other.tokens == plain.tokens
    assert other.logprobs == plain.logprobs


def test_a_sequence_has_the_same_logprobs_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    sampling = Sampling(0.9, 30, 0.9, 0.02, 17, Penalties(1.2, 0.3, 0.1), 4)
    together = run(tmp_path, PROMPTS, [sampling] * len(PROMPTS))
    alone = run(tmp_path, PROMPTS[4:5], [sampling])
    assert alone.tokens[0] == together.tokens[4]
    assert alone.logprobs[0] == together.logprobs[4]
