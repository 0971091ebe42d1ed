"""How do tokens that are in a sequence already become less likely?

Penalties are a function of the tokens so far, counted anew in every step: nothing is kept that could be lost.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.sampling.sampler import on_device_of

# Rows at a time: counts of all tokens of a vocabulary take as much memory as the logits.
_CHUNK = 32


@dataclass(slots=True)
class PenaltyBatch:
    """The sampled rows of a step that have penalties, on the host: [num_rows] each. See ipc.requests.Penalties.

    `rows` are among the sampled ones; `slots`, `num_prompt` and `num_tokens` are of their sequences.
    """

    rows: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    num_prompt: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    repetition: npt.NDArray[np.float32]
    frequency: npt.NDArray[np.float32]
    presence: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


_NO_INTS, _NO_FLOATS = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
NO_PENALTY_ROWS = PenaltyBatch(_NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS, _NO_FLOATS)
"""Of a step in which no row has penalties."""


def apply_penalties(logits: torch.Tensor, batch: PenaltyBatch, token_ids: torch.Tensor) -> None:
    """Change the logits of rows with penalties.

    Args:
        logits: [num_sampled, vocab] float32, changed in place.
        token_ids: [max_num_seqs, width] int32, tokens of all slots. Places that no token is at yet hold any token.
    """
    if len(batch) == 0:
        return
    longest = int(batch.num_tokens.max())
    integers = on_device_of(logits, np.stack((batch.rows, batch.slots, batch.num_prompt, batch.num_tokens)))
    factors = on_device_of(logits, np.stack((batch.repetition, batch.frequency, batch.presence)))
    positions = torch.arange(longest, device=logits.device)
    for start in range(0, len(batch), _CHUNK):
        rows, slots, num_prompt, num_tokens = integers[:, start : start + _CHUNK]
        repetition, frequency, presence = factors[:, start : start + _CHUNK, None]
        tokens = token_ids[:, :longest].index_select(0, slots).long()
        is_known = positions < num_tokens[:, None]
        values = logits.index_select(0, rows)
        is_seen = _count(tokens, is_known, values) > 0
        values = torch.where(is_seen, torch.where(values > 0, values / repetition, values * repetition), values)
        counts = _count(tokens, is_known & (positions >= num_prompt[:, None]), values)
        values -= frequency * counts + presence * (counts > 0)
        logits.index_copy_(0, rows, values)


def _count(tokens: torch.Tensor, counted: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """How often each token of the vocabulary is among the counted ones of its row, as `like`: [num_rows, vocab].

    Sums of ones are exact in any order.
    """
    return torch.zeros_like(like).scatter_add_(1, tokens, counted.to(like.dtype))
