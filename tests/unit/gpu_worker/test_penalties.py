"""Penalties against a reference written out in numpy, and against those of transformers."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from gpu_worker.sampling.penalties import PenaltyBatch, apply_penalties

VOCAB, WIDTH = 13, 9

ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=WIDTH),
        st.integers(0, WIDTH),
        st.sampled_from([1.0, 0.5, 1.3, 100.0]),
        st.sampled_from([0.0, 0.7, -2.0]),
        st.sampled_from([0.0, 2.0, -0.4]),
    ),
    max_size=70,
)


def expected_row(
    logits: np.ndarray, tokens: list[int], num_prompt: int, repetition: float, frequency: float, presence: float
) -> np.ndarray:
    """One row, token by token, in float64."""
    row = logits.astype(np.float64)
    for token in set(tokens):
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token, count in Counter(tokens[num_prompt:]).items():
        row[token] -= frequency * count + presence
    return row


def batch_of(rows: list[int], slots: list[int], cases: list[tuple]) -> PenaltyBatch:
    prompts = [min(num_prompt, len(tokens)) for tokens, num_prompt, *_ in cases]
    factors = np.array([case[2:] for case in cases], dtype=np.float32).reshape(-1, 3).T
    lengths = np.array([len(case[0]) for case in cases], dtype=np.int64)
    return PenaltyBatch(np.array(rows), np.array(slots), np.array(prompts, dtype=np.int64), lengths, *factors)


@given(cases=ROWS, seed=st.integers(0, 2**32 - 1))
def test_penalties_are_those_of_the_definition(cases, seed):
    random = np.random.default_rng(seed)
    num_rows = len(cases) + 3
    rows = random.permutation(num_rows)[: len(cases)]
    slots = random.permutation(num_rows)[: len(cases)]
    logits = random.normal(size=(num_rows, VOCAB)).astype(np.float32) * 5
    token_ids = random.integers(0, VOCAB, (num_rows, WIDTH))
    expected = logits.astype(np.float64)
    for row, slot, case in zip(rows, slots, cases, strict=True):
        token_ids[slot, : len(case[0])] = case[0]
        expected[row] = expected_row(logits[row], *case)
    result = torch.from_numpy(logits)
    apply_penalties(result, batch_of(rows.tolist(), slots.tolist(), cases), torch.from_numpy(token_ids).int())
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.7])
def test_repetition_penalty_is_that_of_transformers(penalty):
    tokens = [3, 3, 7, 0, 12]
    logits = torch.randn(1, VOCAB)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits.clone())
    apply_penalties(logits, batch_of([0], [0], [(tokens, 2, penalty, 0.0, 0.0)]), torch.tensor([tokens]).int())
    torch.testing.assert_close(logits, expected)


def test_a_row_does_not_depend_on_the_others():
    random = np.random.default_rng(1)
    num_rows = 80
    token_ids = torch.from_numpy(random.integers(0, VOCAB, (num_rows, WIDTH))).int()
    cases = [(token_ids[row].tolist(), 3, 1.1, 0.3, 0.2) for row in range(num_rows)]
    logits = torch.randn(num_rows, VOCAB)
    together = logits.clone()
    apply_penalties(together, batch_of(list(range(num_rows)), list(range(num_rows)), cases), token_ids)
    for row in range(num_rows):
        alone = logits[row : row + 1].clone()
        apply_penalties(alone, batch_of([0], [row], cases[row : row + 1]), token_ids)
        assert torch.equal(alone[0], together[row])
