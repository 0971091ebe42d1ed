"""Which rows of a step's input predict prompt tokens whose log probabilities are wanted?

    tokens of a prompt:   0   1   2   3   4   5
    rows that compute         0   1   2   3   4   predict them, so the first has no log probability

A slot's rows come in order. What the scheduler knows already, from before a preemption, is not wanted again.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_worker.sampling.logprobs import PromptLogprobBatch
from pagewire.ipc.steps import AddedSequence

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Wanted:
    """The next row that is wanted, how many there are, and how many alternatives each comes with."""

    next_row: int
    num_rows: int
    num_logprobs: int


class PromptRows:
    """Of the slots that want such log probabilities, what they have not got yet.

    Args:
        width: places for the tokens of a slot.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._wanted: dict[int, _Wanted] = {}

    def clear(self) -> None:
        """Forget every slot."""
        self._wanted.clear()

    def remove(self, slot: int) -> None:
        """Forget a slot, if it is known."""
        self._wanted.pop(slot, None)

    def add(self, sequence: AddedSequence) -> bool:
        """A sequence takes a slot. False: rows that it wants will not be computed."""
        num_logprobs, next_row = sequence.sampling.num_prompt_logprobs, sequence.num_known_prompt_logprobs
        num_rows = sequence.num_prompt_tokens - 1
        if num_logprobs is None or next_row >= num_rows:
            return True
        self._wanted[sequence.slot] = _Wanted(next_row, num_rows, num_logprobs)
        return sequence.num_computed_tokens <= next_row

    def take(
        self, slots: IntArray, query_start: npt.NDArray[np.int32], computed: IntArray, seq_lens: IntArray
    ) -> PromptLogprobBatch:
        """The wanted rows of a step; they are not wanted again.

        Args:
            slots, computed, seq_lens: [num_seqs], of the step; of each, how many tokens are computed before and after.
            query_start: [num_seqs + 1], see StepInputs.
        """
        if not self._wanted:
            return _NOTHING
        rows, places, num_logprobs = [_NO_INTS], [_NO_INTS], [_NO_INTS]
        for index, slot in enumerate(slots.tolist()):
            wanted = self._wanted.get(slot)
            if wanted is None:
                continue
            positions = np.arange(wanted.next_row, min(int(seq_lens[index]), wanted.num_rows))
            rows.append(positions - int(computed[index]) + int(query_start[index]))
            places.append(slot * self._width + positions + 1)
            num_logprobs.append(np.full(len(positions), wanted.num_logprobs))
            wanted.next_row += len(positions)
            if wanted.next_row == wanted.num_rows:
                del self._wanted[slot]
        return PromptLogprobBatch(np.concatenate(rows), np.concatenate(places), np.concatenate(num_logprobs))


_NO_INTS = np.empty(0, dtype=np.int64)
_NOTHING = PromptLogprobBatch(_NO_INTS, _NO_INTS, _NO_INTS)
