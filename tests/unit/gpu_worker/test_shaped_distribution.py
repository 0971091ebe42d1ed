"""Do draws follow the distribution that rules, penalties, temperature and filters together make of the logits?

The reference is written out here, one definition after the other, and shares no code with what it checks.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.execution.shaped_draw import draw_shaped
from gpu_worker.execution.worst_case import NO_INPUTS
from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.parallel import ParallelGroup, VocabPart
from gpu_worker.sampling.penalties import PenaltyBatch
from gpu_worker.sampling.sampler import Sampler, SamplingBatch
from gpu_worker.sampling.token_rules import RuledRow, SlotRules
from gpu_worker.step_inputs import SlotShape
from pagewire.ipc.requests import TokenRules
from tests.unit.gpu_worker.native_kernels import native

VOCAB, NUM_DRAWS, CPU = 10, 20_000, torch.device("cpu")
LOGITS = [1.0, 0.5, -0.2, 2.0, 1.5, -1.0, 0.7, 0.2, -0.5, 1.1]
PROMPT, OUTPUT = [3, 9, 3], [4, 4, 0, 6, 4]
# 99.9999 % quantiles of the chi-squared distribution, by degrees of freedom.
CHI_SQUARED_LIMIT = {1: 23.93, 2: 27.63, 3: 30.66, 4: 33.38, 5: 35.89, 6: 38.26, 7: 40.52, 8: 42.70, 9: 45.08}


@dataclass(frozen=True)
class Case:
    """What is asked for. No field's default does anything."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    allowed: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


CASES = {
    "repetition": Case(repetition=1.4),
    "frequency": Case(frequency=0.3, temperature=0.8),
    "presence": Case(presence=0.7),
    "penalties": Case(repetition=0.7, frequency=-0.4, presence=0.5, temperature=1.3),
    "bias": Case(bias=((5, 3.0), (3, -2.5), (0, 0.4))),
    "allowed": Case(allowed=(1, 4, 7, 8)),
    "banned": Case(banned=(3, 4)),
    "bad words": Case(bad_words=((6, 4, 3), (4, 9), (5, 4, 1), (2,))),
    "filters": Case(temperature=1.2, top_k=7, top_p=0.85, min_p=0.08),
    "filters of penalized": Case(repetition=1.5, frequency=0.2, top_k=6, top_p=0.9, min_p=0.05),
    "all": Case(
        temperature=1.4,
        top_k=6,
        top_p=0.95,
        min_p=0.04,
        repetition=1.2,
        frequency=0.1,
        presence=0.2,
        bias=((5, 2.0), (9, -0.7)),
        allowed=(0, 1, 3, 4, 5, 6, 7, 9),
        banned=(7,),
        bad_words=((4, 3), (9, 9)),
    ),
}


def probabilities(case: Case) -> np.ndarray:
    """Of each token, in float64: rules, penalties, temperature, min-p, top-k, top-p."""
    logits = np.array(LOGITS)
    for token, bias in case.bias:
        logits[token] += bias
    for token in set(PROMPT + OUTPUT):
        logits[token] = logits[token] / case.repetition if logits[token] > 0 else logits[token] * case.repetition
    for token, count in Counter(OUTPUT).items():
        logits[token] -= case.frequency * count + case.presence
    out = set(case.banned) | (set(range(VOCAB)) - set(case.allowed) if case.allowed else set())
    out |= {last for *head, last in case.bad_words if OUTPUT[len(OUTPUT) - len(head) :] == head}
    logits[list(out)] = -np.inf
    weights = np.exp((logits - logits.max()) / case.temperature)
    weights[weights < case.min_p * weights.max()] = 0
    falling = np.argsort(-weights)
    if case.top_k:
        weights[falling[case.top_k :]] = 0
    total, reached = weights.sum(), 0.0
    for token in falling:
        if reached >= case.top_p * total:
            weights[token] = 0
        reached += weights[token]
    return weights / weights.sum()


def draw(case: Case) -> np.ndarray:
    """Counts of each token in many draws, each with a seed of its own."""
    slots = DeviceSlots(SlotShape(1, 20, 4), CPU)
    slots.token_ids[: len(PROMPT + OUTPUT)] = torch.tensor(PROMPT + OUTPUT, dtype=torch.int32)
    rows, lengths = np.arange(NUM_DRAWS), (len(PROMPT), len(PROMPT + OUTPUT))
    ids, biases = zip(*case.bias, strict=True) if case.bias else ((), ())
    rules = SlotRules.of(
        TokenRules(
            int_bytes(case.allowed),
            int_bytes(case.banned),
            int_bytes(ids),
            np.array(biases, dtype="<f4").tobytes(),
            tuple(int_bytes(word) for word in case.bad_words),
        ),
        b"",
        0,
    )
    assert rules is not None

    def each(value: float, dtype: str) -> np.ndarray:
        return np.full(NUM_DRAWS, value, dtype=dtype)

    sampling = SamplingBatch(
        each(case.temperature, "f4"),
        each(case.top_k, "i8"),
        each(case.top_p, "f4"),
        each(case.min_p, "f4"),
        rows,
        rows % 7,
    )
    penalties = PenaltyBatch(
        rows,
        each(0, "i8"),
        each(lengths[0], "i8"),
        each(lengths[1], "i8"),
        each(case.repetition, "f4"),
        each(case.frequency, "f4"),
        each(case.presence, "f4"),
    )
    ruled = [RuledRow(row, 0, *lengths, rules) for row in rows.tolist()]
    inputs = replace(NO_INPUTS, sampling=sampling, penalties=penalties, rules=ruled)
    choose = partial(Sampler(CpuKernels(native())).sample, batch=sampling)
    logits = torch.tensor(LOGITS).repeat(NUM_DRAWS, 1)
    drawn = draw_shaped(logits, inputs, slots, VocabPart(ParallelGroup(), VOCAB), choose)
    assert drawn.finite.all()
    return np.bincount(drawn.token_ids.numpy(), minlength=VOCAB)


def int_bytes(numbers: tuple[int, ...]) -> bytes:
    return np.array(numbers, dtype="<i4").tobytes()


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_written_out_distribution(name: str) -> None:
    expected, counts = probabilities(CASES[name]) * NUM_DRAWS, draw(CASES[name])
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_squared = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert chi_squared < CHI_SQUARED_LIMIT[int(possible.sum()) - 1]


def test_every_case_changes_the_distribution() -> None:
    plain = probabilities(Case())
    for name, case in CASES.items():
        assert np.abs(probabilities(case) - plain).max() > 0.02, name
