"""What transformers gives under penalties, with log probabilities, for checks of whole models."""

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pagewire.ipc.requests import Penalties, Sampling, TokenRules, logprob_record_bytes

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Expected:
    """A greedy continuation, and for each token the log probabilities of all tokens before penalties."""

    token_ids: list[int]
    logprobs: list[torch.Tensor]


def complete(model: PreTrainedModel, prompt: list[int], num_tokens: int, sampling: Sampling) -> Expected:
    """The most likely continuation after token rules and penalties, token by token without a cache."""
    penalties = sampling.penalties or Penalties(1.0, 0.0, 0.0)
    rules = sampling.rules or TokenRules()
    token_ids, logprobs = list(prompt), []
    with torch.inference_mode():
        for _ in range(num_tokens):
            inputs = torch.tensor([token_ids], device=model.device)
            logits = model(inputs, use_cache=False).logits[0, -1].double().cpu()
            logprobs.append(logits.log_softmax(dim=-1))
            allowed = set(_ints(rules.allowed_ids) or range(len(logits))) - set(_ints(rules.banned_ids))
            for *head, last in map(_ints, rules.bad_words):
                if token_ids[len(prompt) :][-len(head) :] == head:
                    allowed.discard(last)
            for token, bias in zip(_ints(rules.bias_ids), np.frombuffer(rules.biases, dtype="<f4"), strict=True):
                logits[token] += float(bias)
            logits[[token for token in range(len(logits)) if token not in allowed]] = -float("inf")
            for token in set(token_ids):
                logits[token] *= penalties.repetition if logits[token] < 0 else 1 / penalties.repetition
            for token, count in Counter(token_ids[len(prompt) :]).items():
                logits[token] -= penalties.frequency * count + penalties.presence
            token_ids.append(int(logits.argmax()))
    return Expected(token_ids[len(prompt) :], logprobs)


def predict(model: PreTrainedModel, prompt: list[int]) -> Expected:
    """The tokens of a prompt after the first, each with the log probabilities of all tokens in its place."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0, :-1].double().cpu()
    return Expected(prompt[1:], list(logits.log_softmax(dim=-1)))


def _ints(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype="<i4").tolist()


def _bytes(numbers: Iterable[int]) -> bytes:
    return np.array(list(numbers), dtype="<i4").tobytes()


def greedy(penalties: Penalties | None, num_logprobs: int | None, rules: TokenRules | None = None) -> Sampling:
    return Sampling(0.0, 0, 1.0, 0.0, 0, penalties, num_logprobs, rules)


MIXED = [
    greedy(None, None),
    greedy(Penalties(1.3, 0.0, 0.0), None),
    greedy(None, 0),
    greedy(Penalties(1.0, 0.4, 0.6), 3),
    greedy(Penalties(0.9, -0.3, 0.2), 20),
    greedy(Penalties(1.2, 0.1, 0.0), 2, TokenRules(allowed_ids=_bytes(range(0, 32, 3)), banned_ids=_bytes([9, 21]))),
    greedy(None, None, TokenRules(_bytes([]), _bytes([4]), _bytes([2, 5]), np.array([6, -9], dtype="<f4").tobytes())),
    greedy(None, 1, TokenRules(bad_words=tuple(_bytes([a, b]) for a in range(32) for b in (2, 3, 5, 7, 11)))),
]
"""Sequences of all kinds, to run side by side."""


def check_records(records: bytes, num_logprobs: int | None, expected: Expected, *, tie: float = 0.0) -> None:
    """Assert that each token came with the log probabilities that it should. Tokens that differ by less than `tie` may
    come in another order: which of them is first is a matter of rounding."""
    if num_logprobs is None:
        assert records == b""
        return
    size = logprob_record_bytes(num_logprobs)
    assert len(records) == size * len(expected.token_ids)
    for index, (token, logprobs) in enumerate(zip(expected.token_ids, expected.logprobs, strict=True)):
        (rank, logprob), *top = struct.iter_unpack("<if", records[index * size : (index + 1) * size])
        assert logprob == pytest.approx(logprobs[token].item(), abs=TOLERANCE)
        ranks = [int((logprobs >= logprobs[token] + shift).sum()) for shift in (tie, -tie)]
        assert ranks[0] <= rank <= ranks[1]
        wanted, wanted_ids = logprobs.topk(num_logprobs)
        assert [value for _, value in top] == pytest.approx(wanted.tolist(), abs=TOLERANCE)
        others = [other for other, _ in top]
        assert len(set(others)) == num_logprobs
        for other, value, wanted_id in zip(others, wanted, wanted_ids.tolist(), strict=True):
            assert other == wanted_id or abs(logprobs[other] - value) < tie
