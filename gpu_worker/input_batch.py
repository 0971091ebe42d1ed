"""What do the scheduler's slots hold, and which tensors does the next step compute on?

Every sequence has a slot. Its numbers and its block table live on the host; its token ids live on the device, where a
drawn token is stored without ever visiting the host. A step's tensors come out of a few vectorised operations over the
slots, however many sequences there are:

    slots        3   7   1                  of the step, sequences with one token first
    num_tokens   1   1   4
    rows         0   1   2  3  4  5         of the model's input
    query_start  0   1   2           6
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.sampler import SamplingBatch
from pagewire.ipc.steps import AddedSequence, StepBatch

IntArray = npt.NDArray[np.int64]


class StepBatchError(Exception):
    """A step batch contradicts the slots: scheduler and worker no longer agree, and the worker must start over."""


@dataclass(slots=True)
class StepInputs:
    """What a forward pass over a step batch needs, on the device unless said otherwise.

    input_ids, positions   [num_tokens] int64
    sampled_rows           [num_sampled] int64, rows whose logits are wanted
    token_slots            [num_sampled] int64, where each drawn token goes among all slots' token ids
    sampling               of the sampled rows, on the host
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    metadata: AttentionMetadata
    sampled_rows: torch.Tensor
    token_slots: torch.Tensor
    sampling: SamplingBatch


class InputBatch:
    """The worker's mirror of the scheduler's slots.

    Args:
        num_blocks: KV blocks in the pool; block ids are below it.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, num_blocks: int, device: torch.device
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._num_blocks = num_blocks
        self._device = device
        # One place more than a sequence can have: a step sent ahead may draw a token that is then discarded.
        self._width = max_model_len + 1
        self._token_ids = torch.zeros(max_num_seqs * self._width, dtype=torch.int32, device=device)
        self._block_tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self._used = np.zeros(max_num_seqs, dtype=np.bool_)
        self._num_prompt = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self._table_lens = np.zeros(max_num_seqs, dtype=np.int64)
        self._sampling = SamplingBatch(
            temperature=np.zeros(max_num_seqs, dtype=np.float32),
            top_k=np.zeros(max_num_seqs, dtype=np.int64),
            top_p=np.ones(max_num_seqs, dtype=np.float32),
            min_p=np.zeros(max_num_seqs, dtype=np.float32),
            seeds=np.zeros(max_num_seqs, dtype=np.int64),
            positions=np.zeros(max_num_seqs, dtype=np.int64),
        )

    def clear(self) -> None:
        """Forget every slot."""
        self._used[:] = False

    def apply(self, batch: StepBatch) -> StepInputs:
        """Take over a step batch's changes, and move its sequences to where they are once the step is done.

        Raises:
            StepBatchError: the batch contradicts the slots.
        """
        self._remove(_ints(batch.removed))
        for sequence in batch.added:
            self._add(sequence)
        self._append_blocks(_ints(batch.block_slots), _ints(batch.block_ids))
        slots, counts = _ints(batch.slots), _ints(batch.num_tokens)
        sampled = np.frombuffer(batch.sampled, dtype=np.int8).astype(np.bool_)
        self._check_step(slots, counts, sampled)
        inputs = self._build(slots, counts, sampled)
        self._num_computed[slots] += counts
        self._num_tokens[slots[sampled]] += 1
        return inputs

    def store(self, inputs: StepInputs, token_ids: torch.Tensor) -> None:
        """Append the drawn tokens, [num_sampled], to their sequences."""
        self._token_ids[inputs.token_slots] = token_ids.int()

    # ---- changes --------------------------------------------------------------------------------------------------

    def _remove(self, slots: IntArray) -> None:
        self._require(self._are_used(slots), "removed slots that are not in use")
        self._used[slots] = False

    def _add(self, sequence: AddedSequence) -> None:
        slot, blocks = sequence.slot, _ints(sequence.block_ids)
        tokens = torch.from_numpy(np.frombuffer(sequence.token_ids, dtype="<i4").copy())
        self._require(0 <= slot < self._max_num_seqs and not self._used[slot], f"slot {slot} is not free")
        self._require(
            0 <= sequence.num_computed_tokens < len(tokens) <= self._max_model_len
            and 0 < sequence.num_prompt_tokens <= len(tokens),
            f"slot {slot} with {len(tokens)} tokens",
        )
        self._require(len(blocks) <= self._block_tables.shape[1] and self._are_blocks(blocks), f"blocks of slot {slot}")
        start = slot * self._width
        self._token_ids[start : start + len(tokens)].copy_(tokens, non_blocking=True)
        self._block_tables[slot, : len(blocks)] = blocks
        self._table_lens[slot] = len(blocks)
        self._used[slot] = True
        self._num_prompt[slot] = sequence.num_prompt_tokens
        self._num_tokens[slot] = len(tokens)
        self._num_computed[slot] = sequence.num_computed_tokens
        self._sampling.temperature[slot] = sequence.sampling.temperature
        self._sampling.top_k[slot] = sequence.sampling.top_k
        self._sampling.top_p[slot] = sequence.sampling.top_p
        self._sampling.min_p[slot] = sequence.sampling.min_p
        self._sampling.seeds[slot] = np.uint64(sequence.sampling.seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64)

    def _append_blocks(self, slots: IntArray, blocks: IntArray) -> None:
        """Append blocks[j] to the table of slots[j]; a slot may come several times."""
        if len(slots) == 0:
            return
        self._require(self._are_used(slots) and self._are_blocks(blocks) and len(slots) == len(blocks), "new blocks")
        order = np.argsort(slots, kind="stable")
        slots, blocks = slots[order], blocks[order]
        owners, first, counts = np.unique(slots, return_index=True, return_counts=True)
        columns = self._table_lens[slots] + np.arange(len(slots)) - np.repeat(first, counts)
        self._require(bool((columns < self._block_tables.shape[1]).all()), "more blocks than a sequence can have")
        self._block_tables[slots, columns] = blocks
        self._table_lens[owners] += counts

    # ---- the step -------------------------------------------------------------------------------------------------

    def _build(self, slots: IntArray, counts: IntArray, sampled: npt.NDArray[np.bool_]) -> StepInputs:
        num_seqs, num_tokens = len(slots), int(counts.sum())
        query_start = np.zeros(num_seqs + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1:])
        computed = self._num_computed[slots]
        seq_lens = computed + counts
        row_slots, positions = slots, computed
        if num_tokens != num_seqs:
            row_slots = np.repeat(slots, counts)
            positions = np.arange(num_tokens) + np.repeat(computed - query_start[:-1], counts)
        blocks = self._block_tables[row_slots, positions // self._block_size].astype(np.int64)
        max_seq_len = int(seq_lens.max(initial=0))
        tables = self._block_tables[slots, : -(-max_seq_len // self._block_size)]
        metadata = AttentionMetadata(
            query_start=self._send(query_start),
            seq_lens=self._send(seq_lens.astype(np.int32)),
            block_tables=self._send(tables),
            slot_mapping=self._send(blocks * self._block_size + positions % self._block_size),
            num_decodes=int((counts == 1).sum()),
            max_query_len=int(counts.max(initial=0)),
            max_seq_len=max_seq_len,
        )
        drawing = slots[sampled]
        sampling = self._sampling.take(drawing)
        sampling.positions = self._num_tokens[drawing] - self._num_prompt[drawing]
        token_places = self._send(row_slots * self._width + positions)
        return StepInputs(
            input_ids=self._token_ids.index_select(0, token_places).long(),
            positions=self._send(positions),
            metadata=metadata,
            sampled_rows=self._send((query_start[1:][sampled] - 1).astype(np.int64)),
            token_slots=self._send(drawing * self._width + self._num_tokens[drawing]),
            sampling=sampling,
        )

    def _check_step(self, slots: IntArray, counts: IntArray, sampled: npt.NDArray[np.bool_]) -> None:
        self._require(len(slots) == len(counts) == len(sampled), "slots, token counts and flags of different lengths")
        self._require(self._are_used(slots), "a step for slots that are not in use")
        self._require(len(np.unique(slots)) == len(slots), "a step that names a slot twice")
        ends = self._num_computed[slots] + counts
        known = self._num_tokens[slots]
        self._require(bool(((counts > 0) & (ends <= known)).all()), "a step past the known tokens")
        self._require(bool((ends[sampled] == known[sampled]).all()), "a draw before a sequence's last known token")
        self._require(bool((ends <= self._table_lens[slots] * self._block_size).all()), "a step without blocks for it")
        self._require(bool((ends <= self._max_model_len).all()), "a step past the longest sequence")
        ones = counts == 1
        self._require(bool((ones[:-1] >= ones[1:]).all()), "a step whose single tokens do not come first")

    def _are_used(self, slots: IntArray) -> bool:
        return bool(((slots >= 0) & (slots < self._max_num_seqs)).all() and self._used[slots].all())

    def _are_blocks(self, blocks: IntArray) -> bool:
        return bool(((blocks >= 0) & (blocks < self._num_blocks)).all())

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise StepBatchError(f"the scheduler sent {what}")

    def _send(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _ints(data: bytes) -> IntArray:
    """Little-endian int32 bytes as numbers that can index."""
    return np.frombuffer(data, dtype="<i4").astype(np.int64)
