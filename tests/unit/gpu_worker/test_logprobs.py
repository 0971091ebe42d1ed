"""Log probabilities against a reference written out in numpy."""

import struct

import numpy as np
import pytest
import torch

from gpu_worker.sampling.logprobs import find_logprobs, to_records
from pagewire.ipc.requests import logprob_record_bytes


def read_record(record: bytes) -> list[tuple[int, float]]:
    return list(struct.iter_unpack("<if", record))


@pytest.mark.parametrize("vocab", [23, 40_000])
@pytest.mark.parametrize("num_rows", [1, 3, 70])
def test_logprobs_are_those_of_the_softmax(num_rows, vocab):
    logits = torch.randn(num_rows, vocab) * 4
    tokens = torch.randint(0, vocab, (num_rows,))
    counts = np.arange(num_rows) % 21
    table = find_logprobs(logits, tokens, int(counts.max())).numpy()
    records = to_records(table, counts)
    wide = logits.double().numpy()
    logprobs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    start = 0
    for row, (token, count) in enumerate(zip(tokens.tolist(), counts.tolist(), strict=True)):
        end = start + logprob_record_bytes(count)
        (rank, logprob), *top = read_record(records[start:end])
        assert rank == int((logits[row] >= logits[row, token]).sum())
        assert logprob == pytest.approx(logprobs[row, token], abs=2e-5)
        assert [other for other, _ in top] == np.argsort(-wide[row], kind="stable")[:count].tolist()
        assert [value for _, value in top] == pytest.approx(np.sort(logprobs[row])[::-1][:count].tolist(), abs=2e-5)
        start = end
    assert start == len(records)


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(70, 49_152) * 4
    tokens = torch.randint(0, 49_152, (70,))
    together = find_logprobs(logits, tokens, 5)
    for row in range(70):
        alone = find_logprobs(logits[row : row + 1].clone(), tokens[row : row + 1], 5)
        assert torch.equal(alone[0], together[row])


def test_ties_share_the_lower_rank():
    table = find_logprobs(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), torch.tensor([2]), 0)
    assert table[0, 0] == 2
