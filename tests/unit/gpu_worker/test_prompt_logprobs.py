"""Log probabilities of prompts on a CPU: those of transformers, once each, however prompts are cut and cached."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpu_worker.execution import eager
from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.execution.prompt_logprobs import find_prompt_logprobs
from gpu_worker.execution.worst_case import NO_INPUTS
from gpu_worker.parallel import ParallelGroup, VocabPart
from gpu_worker.prompt_rows import PromptRows
from gpu_worker.sampling.logprobs import PromptLogprobBatch
from gpu_worker.step_inputs import SlotShape
from pagewire.ipc.requests import Sampling, logprob_record_bytes
from tests.fakes.bare_scheduler import make_added
from tests.unit.core.harness import Harness
from tests.unit.gpu_worker.launched_steps import run_prompts
from tests.unit.gpu_worker.shaped_cases import check_records, predict
from tests.unit.gpu_worker.thread_ranks import run_ranks
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


@pytest.mark.parametrize(("vocab", "world_size"), [(49, 2), (300, 3)])
def test_ranks_find_what_one_rank_finds(vocab: int, world_size: int) -> None:
    hidden, weight = torch.randn(21, 8), torch.randn(vocab, 8)
    slots = DeviceSlots(SlotShape(2, 50, 4), torch.device("cpu"))
    slots.token_ids.copy_(torch.randint(0, vocab, slots.token_ids.shape))
    wanted = PromptLogprobBatch(np.arange(0, 20, 2), np.arange(31, 41), np.arange(10))
    inputs = replace(NO_INPUTS, prompt_logprobs=wanted)

    def find(group: ParallelGroup) -> torch.Tensor:
        part = VocabPart(group, vocab)
        own = weight[part.token_ids.start : part.token_ids.stop]
        model = SimpleNamespace(vocab=part, compute_logits=lambda rows: rows @ own.T)
        return find_prompt_logprobs(model, hidden, inputs, slots, most_rows=4)

    expected = find(ParallelGroup())
    assert expected.shape == (10, 2 + 2 * 9)
    for table in run_ranks(world_size, find):
        assert (table[:, 0] == expected[:, 0]).all()
        assert (table[:, 2::2] == expected[:, 2::2]).all()
        torch.testing.assert_close(table.view(torch.float32)[:, 1::2], expected.view(torch.float32)[:, 1::2])
