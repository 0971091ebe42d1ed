"""Log probabilities of prompts on a CPU: those of transformers, once each, however prompts are cut and cached."""

import random
from pathlib import Path

import numpy as np
import pytest

from gpu_worker.execution import eager
from gpu_worker.prompt_rows import PromptRows
from pagewire.ipc.requests import Sampling, logprob_record_bytes
from tests.fakes.bare_scheduler import make_added
from tests.unit.core.harness import Harness
from tests.unit.gpu_worker.launched_steps import run_prompts
from tests.unit.gpu_worker.shaped_cases import check_records, predict
from tests.unit.gpu_worker.tiny_checkpoint import VOCAB, write_checkpoint

NUM_TOKENS = 12
GENERATOR = random.Random(3)
PROMPTS = [[GENERATOR.randrange(VOCAB) for _ in range(length)] for length in (1, 2, 3, 8, 17, 40, 6, 100, 9, 33)]
COUNTS = [None, 0, 3, 20, 1, 2, None, 5, 0, 20]
WAYS: dict[str, dict[str, object]] = {
    "at once": {"chunk": 400},
    "chunks": {"chunk": 7, "max_num_seqs": 4},
    "single rows": {"chunk": 1, "max_num_seqs": 1},
    "preemption": {"num_blocks": 36},
    "synchronous": {"async_scheduling": False},
    "cached": {"before": PROMPTS},
}


def sampling_of(num_prompt_logprobs: int | None, num_logprobs: int | None = None) -> Sampling:
    return Sampling(0.0, 0, 1.0, 0.0, 0, None, num_logprobs, None, num_prompt_logprobs)


def run(folder: Path, prompts: list[list[int]], counts: list[int | None], **settings: object) -> Harness:
    sizes: dict[str, object] = {"num_blocks": 300, "block_size": 4, "chunk": 64}
    samplings = [sampling_of(count, count) for count in counts]
    return run_prompts(folder, prompts, NUM_TOKENS, samplings, **(sizes | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_logprobs_of_prompts_are_those_of_transformers(tmp_path: Path, way: str) -> None:
    model = write_checkpoint(tmp_path)
    harness = run(tmp_path, PROMPTS, COUNTS, **WAYS[way])
    for stream, (prompt, count) in enumerate(zip(PROMPTS, COUNTS, strict=True)):
        check_records(harness.prompt_logprobs[stream], count, predict(model, prompt))
        if count is not None:
            assert harness.ended[stream].num_cached_tokens == 0


def test_logprobs_of_prompts_are_the_same_to_the_bit_however_they_are_computed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    plain, *others = (run(tmp_path, PROMPTS, COUNTS, **settings) for settings in WAYS.values())
    for other in others:
        for stream in range(len(PROMPTS)):
            assert other.prompt_logprobs[stream] == plain.prompt_logprobs[stream]
            assert other.tokens[stream] == plain.tokens[stream]


def test_who_shares_the_prompt_and_wants_no_logprobs_reads_the_cache(tmp_path: Path) -> None:
    """As the further choices of a request do."""
    model = write_checkpoint(tmp_path)
    prompt = PROMPTS[5]
    harness = run(tmp_path, [prompt] * 4, [2, None, None, None])
    check_records(harness.prompt_logprobs[0], 2, predict(model, prompt))
    assert [harness.ended[stream].num_cached_tokens for stream in range(4)] == [0, 36, 36, 36]
    assert len({tuple(tokens) for tokens in harness.tokens.values()}) == 1


def test_steps_that_draw_nothing_answer_with_the_logprobs_of_their_rows(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    prompt, size = PROMPTS[7], logprob_record_bytes(5)
    harness = run(tmp_path, [], [], chunk=16, max_num_seqs=4)
    harness.add(0, prompt, max_tokens=1, sampling=sampling_of(5))
    seen = []
    while 0 not in harness.ended:
        harness.schedule()
        harness.finish_step()
        seen.append(len(harness.prompt_logprobs[0]) // size)
    assert seen[:3] == [16, 32, 48]
    check_records(harness.prompt_logprobs[0], 5, predict(model, prompt))


def test_rows_are_wanted_once() -> None:
    rows = PromptRows(width=100)
    added = make_added(2, list(range(10)), [0, 1, 2], sampling_of(3))
    assert rows.add(added)
    taken = []
    for start, end in ((0, 4), (4, 9), (9, 10), (10, 11)):
        batch = rows.take(np.array([5, 2]), np.array([0, 1, 1 + end - start]), np.array([7, start]), np.array([8, end]))
        assert (batch.rows - 1 + start + 1 == batch.token_places - 200).all()
        taken += (batch.token_places - 200).tolist()
    assert taken == list(range(1, 10))


def test_a_batch_without_such_rows_makes_no_logits_of_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr(eager, "find_prompt_logprobs", lambda *args: pytest.fail("logits were made"))
    run(tmp_path, PROMPTS, [None] * len(PROMPTS))
