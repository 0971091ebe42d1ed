"""What does one step compute on, as numbers on the host?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_worker.sampling.logprobs import LogprobBatch, PromptLogprobBatch
from gpu_worker.sampling.penalties import PenaltyBatch
from gpu_worker.sampling.sampler import SamplingBatch
from gpu_worker.sampling.token_rules import RuledRow

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotShape:
    """How many slots there are, and how long a sequence can be.

    A sequence's tokens are at slot * width + position, with one place more than it can have: a step sent ahead may draw
    a token that is then discarded.
    """

    max_num_seqs: int
    max_model_len: int
    block_size: int

    @property
    def width(self) -> int:
        """Places for the tokens of a slot."""
        return self.max_model_len + 1

    @property
    def padding_place(self) -> int:
        """The place after all slots' tokens: no sequence's."""
        return self.max_num_seqs * self.width

    @property
    def max_blocks(self) -> int:
        """Blocks that a sequence can have."""
        return -(-self.max_model_len // self.block_size)


@dataclass(slots=True)
class Writes:
    """What is to be written on the device before a step: values[i], int32, at places[i], int64."""

    places: IntArray
    values: npt.NDArray[np.int32]


@dataclass(slots=True)
class StepInputs:
    """What a forward pass over a step batch needs, on the host.

    new_tokens, new_blocks          to be written before it: among all slots' token ids, and among their block tables
    slots                           [num_seqs]
    query_start, seq_lens           see AttentionMetadata: int32
    prompt_lens                     [num_seqs] int32, tokens of each sequence's prompt
    positions, slot_mapping         [num_tokens] int64
    token_places                    [num_tokens] int64, where each input token is among all slots' token ids
    sampled_rows                    [num_sampled] int64, rows whose logits are wanted
    drawn_places                    [num_sampled] int64, where each drawn token goes among all slots' token ids
    sampling, rules, penalties, logprobs    of the sampled rows
    prompt_logprobs                 of any rows
    """

    new_tokens: Writes
    new_blocks: Writes
    slots: IntArray
    query_start: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]
    prompt_lens: npt.NDArray[np.int32]
    positions: IntArray
    slot_mapping: IntArray
    token_places: IntArray
    sampled_rows: IntArray
    drawn_places: IntArray
    sampling: SamplingBatch
    rules: list[RuledRow]
    penalties: PenaltyBatch
    logprobs: LogprobBatch
    num_decodes: int
    max_query_len: int
    max_seq_len: int
    prompt_logprobs: PromptLogprobBatch

    def drawing_slots(self, shape: SlotShape) -> IntArray:
        """The slots of the sampled rows."""
        return self.drawn_places // shape.width

    @property
    def is_shaped(self) -> bool:
        """Whether some row has rules or penalties, or wants log probabilities."""
        return bool(self.rules) or len(self.penalties) > 0 or len(self.logprobs) > 0
