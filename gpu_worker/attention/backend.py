"""What an attention backend is given and what it must return."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(slots=True)
class AttentionMetadata:
    """Where the tokens of one step batch lie. Tensors are int32 on the device unless said otherwise.

    Sequences that compute one token come first, then those that compute more (chunks of a prompt).

        query_start   [num_seqs + 1]           first row of each sequence among the batch's tokens, then num_tokens
        seq_lens      [num_seqs]               tokens of each sequence once this step is done
        block_tables  [num_seqs, max_blocks]   block ids in order; entries past the sequence's end mean nothing
        slot_mapping  [num_tokens] int64       where each token's key and value go: block id * block_size + offset
        num_decodes                            how many leading sequences compute one token
        max_query_len, max_seq_len             maxima over the batch, known on the host
        prompt_lens   [num_seqs] on the host   tokens of each sequence's prompt; None: whatever is computed with others
                                               is of a prompt, and single tokens are outputs
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_seq_len: int
    prompt_lens: torch.Tensor | None = None


@dataclass(slots=True, frozen=True)
class AttentionParams:
    """What distinguishes one layer's attention from another's.

    `sliding_window` w: a query at position p sees keys at positions > p - w. `soft_cap` c: scores s become
    c * tanh(s / c).
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None


class AttentionBackend(Protocol):
    """Causal attention of new queries over everything their sequences hold in the KV cache.

    Attributes:
        reads_device_only: whether a step depends on no number of the host but its padded sizes, so that one captured
            graph serves every batch that fits it.
    """

    reads_device_only: bool

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Do what all layers of a step share. Called once per step, before the first `forward`."""
        ...

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [num_tokens, num_heads, head_dim], rotated.
            kv_cache: [2, num_blocks, block_size, num_kv_heads, head_dim], this layer's keys and values, those of the
                batch's own tokens already written.

        Returns:
            [num_tokens, num_heads * head_dim] in the query's dtype.
        """
        ...
