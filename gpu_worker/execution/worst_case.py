"""Which steps are made up, to measure memory and to capture graphs?"""

import numpy as np

from gpu_worker.sampling.logprobs import NO_LOGPROB_ROWS, LogprobBatch, PromptLogprobBatch
from gpu_worker.sampling.penalties import NO_PENALTY_ROWS, PenaltyBatch
from gpu_worker.sampling.sampler import SamplingBatch
from gpu_worker.step_inputs import SlotShape, StepInputs, Writes

# Some: the memory that they take is of no account.
_MOST_LOGPROBS = 1
_NO_INTS = np.empty(0, dtype=np.int64)
_NO_PROMPT_LOGPROBS = PromptLogprobBatch(_NO_INTS, _NO_INTS, _NO_INTS)
_NO_WRITES = Writes(_NO_INTS, np.empty(0, dtype=np.int32))

NO_INPUTS = StepInputs(
    new_tokens=_NO_WRITES,
    new_blocks=_NO_WRITES,
    slots=_NO_INTS,
    query_start=np.zeros(1, dtype=np.int32),
    seq_lens=np.empty(0, dtype=np.int32),
    prompt_lens=np.empty(0, dtype=np.int32),
    positions=_NO_INTS,
    slot_mapping=_NO_INTS,
    token_places=_NO_INTS,
    sampled_rows=_NO_INTS,
    drawn_places=_NO_INTS,
    sampling=SamplingBatch(*(np.empty(0, dtype=dtype) for dtype in ("f4", "i8", "f4", "f4", "i8", "i8"))),
    rules=[],
    penalties=NO_PENALTY_ROWS,
    logprobs=NO_LOGPROB_ROWS,
    num_decodes=0,
    max_query_len=0,
    max_seq_len=0,
    prompt_logprobs=_NO_PROMPT_LOGPROBS,
)
"""A step of no sequence: padded, it is all padding."""


def worst_case(shape: SlotShape, num_tokens: int) -> StepInputs:
    """A step of so many tokens, spread over all slots, in which every slot draws with all filters and penalties.

    It reads block 0, and writes to no block and to no slot's tokens; fewer tokens than slots leave slots out.
    """
    num_seqs = min(shape.max_num_seqs, num_tokens)
    num_tokens = min(num_tokens, num_seqs * shape.max_model_len)
    query_start = (np.arange(num_seqs + 1) * num_tokens // num_seqs).astype(np.int32)
    counts = np.diff(query_start)
    order = np.argsort(counts != 1, kind="stable")
    query_start[1:] = np.cumsum(counts[order])
    seq_lens = np.diff(query_start)
    return StepInputs(
        new_tokens=_NO_WRITES,
        new_blocks=_NO_WRITES,
        slots=np.arange(num_seqs),
        query_start=query_start,
        seq_lens=seq_lens,
        prompt_lens=seq_lens,
        positions=np.arange(num_tokens) - np.repeat(query_start[:-1], seq_lens),
        slot_mapping=np.full(num_tokens, -1),
        token_places=np.full(num_tokens, shape.padding_place),
        sampled_rows=(query_start[1:] - 1).astype(np.int64),
        drawn_places=np.full(num_seqs, shape.padding_place),
        sampling=SamplingBatch(
            temperature=np.ones(num_seqs, dtype=np.float32),
            top_k=np.full(num_seqs, 2, dtype=np.int64),
            top_p=np.full(num_seqs, 0.9, dtype=np.float32),
            min_p=np.full(num_seqs, 0.1, dtype=np.float32),
            seeds=np.zeros(num_seqs, dtype=np.int64),
            positions=np.zeros(num_seqs, dtype=np.int64),
        ),
        rules=[],
        penalties=PenaltyBatch(
            rows=np.arange(num_seqs),
            slots=np.arange(num_seqs),
            num_prompt=np.zeros(num_seqs, dtype=np.int64),
            num_tokens=np.full(num_seqs, shape.max_model_len),
            repetition=np.full(num_seqs, 2.0, dtype=np.float32),
            frequency=np.ones(num_seqs, dtype=np.float32),
            presence=np.ones(num_seqs, dtype=np.float32),
        ),
        logprobs=LogprobBatch(np.arange(num_seqs), np.full(num_seqs, _MOST_LOGPROBS)),
        num_decodes=int((seq_lens == 1).sum()),
        max_query_len=int(seq_lens.max()),
        max_seq_len=int(seq_lens.max()),
        prompt_logprobs=_NO_PROMPT_LOGPROBS,
    )
