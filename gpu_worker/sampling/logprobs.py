"""What is the log probability of each drawn token or token of a prompt, and which tokens were more likely?

Those are probabilities under the model's logits, before penalties, temperature and filters, as vLLM gives them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# Rows at a time: log probabilities of a vocabulary take as much memory as its logits.
_CHUNK = 32


@dataclass(slots=True)
class LogprobBatch:
    """The sampled rows of a step whose log probabilities are wanted, and of how many alternatives: [num_rows] each."""

    rows: npt.NDArray[np.int64]
    num_logprobs: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


NO_LOGPROB_ROWS = LogprobBatch(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
"""Of a step in which no row's log probabilities are wanted."""


@dataclass(slots=True)
class PromptLogprobBatch:
    """The rows of a step's input whose next tokens are the prompt's, and wanted with their log probabilities.

    rows, num_logprobs: [num_rows], of the model's input, and how many alternatives of each.
    token_places: [num_rows] int64, where the tokens are among all slots' token ids.
    """

    rows: npt.NDArray[np.int64]
    token_places: npt.NDArray[np.int64]
    num_logprobs: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def find_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_alternatives: int) -> torch.Tensor:
    """Ranks and log probabilities of tokens, and of the most likely ones.

    Args:
        logits: [num_rows, vocab] float32.
        token_ids: [num_rows] int64.
        num_alternatives: at most vocab.

    Returns:
        [num_rows, 2 + 2 * num_alternatives] int32: a record as in pagewire.ipc.requests, the bits of its floats as
        integers. A token's rank counts the tokens that are at least as likely.
    """
    table = torch.empty((len(logits), 2 + 2 * num_alternatives), dtype=torch.int32, device=logits.device)
    for start in range(0, len(logits), _CHUNK):
        chunk, tokens = logits[start : start + _CHUNK], token_ids[start : start + _CHUNK, None]
        logprobs = chunk.log_softmax(dim=-1)
        chosen = logprobs.gather(1, tokens)
        top, top_ids = logprobs.topk(num_alternatives, dim=-1)
        part = table[start : start + _CHUNK]
        part[:, 0] = (logprobs >= chosen).sum(dim=-1)
        part[:, 1:2] = chosen.view(torch.int32)
        part[:, 2::2] = top_ids
        part[:, 3::2] = top.view(torch.int32)
    return table


def to_records(table: npt.NDArray[np.int32], num_logprobs: npt.NDArray[np.int64]) -> bytes:
    """Each row's record: of a table for all rows what the row wants."""
    rows = zip(table, num_logprobs.tolist(), strict=True)
    return b"".join(row[: 2 + 2 * count].tobytes() for row, count in rows)
