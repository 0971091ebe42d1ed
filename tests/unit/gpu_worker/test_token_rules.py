"""Token rules against a reference written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.sampling.token_rules import RuledRow, SlotRules, apply_rules
from pagewire.ipc.requests import TokenRules

VOCAB, WIDTH, NUM_SLOTS = 11, 8, 5
IDS = st.lists(st.integers(0, VOCAB - 1), unique=True, max_size=4)
# Few tokens, so that words are found.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=WIDTH)
WORDS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=4)


def int_bytes(numbers: list[int]) -> bytes:
    return np.array(numbers, dtype="<i4").tobytes()


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, SlotRules]:
    """Tokens so far, how many are the prompt's, and rules."""
    tokens = draw(TOKENS)
    bias_ids = draw(IDS)
    biases = [draw(st.sampled_from([-100.0, 0.5, 3.0])) for _ in bias_ids]
    rules = TokenRules(
        int_bytes(draw(IDS)),
        int_bytes(draw(IDS)),
        int_bytes(bias_ids),
        np.array(biases, dtype="<f4").tobytes(),
        tuple(int_bytes(word) for word in draw(WORDS)),
    )
    slot_rules = SlotRules.of(rules, int_bytes(draw(IDS)), draw(st.integers(0, 5)))
    assert slot_rules is not None
    return tokens, draw(st.integers(1, len(tokens))), slot_rules


def expected_row(logits: np.ndarray, tokens: list[int], num_prompt: int, rules: SlotRules) -> np.ndarray:
    """One row, rule by rule; -inf where a token may not be drawn."""
    row, output = logits.astype(np.float64), tokens[num_prompt:]
    for token, bias in zip(rules.bias_ids, rules.biases, strict=True):
        row[token] += bias
    banned = set(rules.banned_ids) | (set(rules.end_ids) if len(output) < rules.min_tokens else set())
    if len(rules.allowed_ids):
        banned |= set(range(VOCAB)) - set(rules.allowed_ids)
    for padded, last in zip(rules.heads.tolist(), rules.last_ids.tolist(), strict=True):
        head = [token for token in padded if token >= 0]
        if len(head) <= len(output) and output[len(output) - len(head) :] == head:
            banned.add(last)
    row[list(banned)] = -np.inf
    return row


@given(picked=st.lists(cases(), max_size=NUM_SLOTS), seed=st.integers(0, 2**32 - 1))
def test_rules_are_those_of_the_definition(picked, seed):
    random = np.random.default_rng(seed)
    rows, slots = random.permutation(NUM_SLOTS + 2), random.permutation(NUM_SLOTS)
    logits = random.normal(size=(NUM_SLOTS + 2, VOCAB)).astype(np.float32)
    token_ids = random.integers(0, 3, (NUM_SLOTS, WIDTH))
    expected = logits.astype(np.float64)
    ruled = []
    for row, slot, (tokens, num_prompt, rules) in zip(rows.tolist(), slots.tolist(), picked, strict=False):
        token_ids[slot, : len(tokens)] = tokens
        expected[row] = expected_row(logits[row], tokens, num_prompt, rules)
        ruled.append(RuledRow(row, slot, num_prompt, len(tokens), rules))
    result = torch.from_numpy(logits.copy())
    apply_rules(result, ruled, torch.from_numpy(token_ids).int())
    assert result.isfinite().all()
    assert result.sum(dim=-1).isfinite().all()
    is_banned = np.isinf(expected)
    assert (result.numpy()[is_banned] < -1e29).all()
    np.testing.assert_allclose(result.numpy()[~is_banned], expected[~is_banned], rtol=1e-6, atol=1e-6)


def test_a_bad_word_of_one_token_is_never_drawn():
    rules = SlotRules.of(TokenRules(bad_words=(int_bytes([4]),)), b"", 0)
    assert rules is not None
    logits = torch.zeros(1, VOCAB)
    apply_rules(logits, [RuledRow(0, 0, 1, 1, rules)], torch.zeros(1, WIDTH, dtype=torch.int32))
    assert logits[0].argmin() == 4


@pytest.mark.parametrize(("min_tokens", "is_none"), [(0, True), (1, False)])
def test_sequences_without_rules_cost_nothing(min_tokens, is_none):
    assert (SlotRules.of(None, b"", min_tokens) is None) == is_none


def test_an_allowed_token_is_drawn_even_if_it_is_banned_now():
    rules = SlotRules.of(TokenRules(allowed_ids=int_bytes([4])), int_bytes([4]), 3)
    assert rules is not None
    logits = torch.zeros(1, VOCAB)
    apply_rules(logits, [RuledRow(0, 0, 1, 1, rules)], torch.zeros(1, WIDTH, dtype=torch.int32))
    assert logits[0].argmax() == 4
