"""The torch reference backend: plain torch on any device, the yardstick of every other backend."""

import torch
import torch.nn.functional as F

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams


class TorchAttention:
    """Attends sequence by sequence over a gathered copy of its keys and values."""

    reads_device_only = False

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Nothing is shared by the layers."""

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """See AttentionBackend.forward."""
        output = torch.empty_like(query)
        starts = metadata.query_start.tolist()
        seq_lens = metadata.seq_lens.tolist()
        for index, seq_len in enumerate(seq_lens):
            rows = slice(starts[index], starts[index + 1])
            keys, values = _gather(kv_cache, metadata.block_tables[index], seq_len)
            output[rows] = _attend(query[rows], keys, values, params)
        return output.flatten(1)


def _gather(kv_cache: torch.Tensor, block_table: torch.Tensor, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy a sequence's keys and values out of its blocks: two of [seq_len, num_kv_heads, head_dim]."""
    block_size = kv_cache.shape[2]
    blocks = block_table[: -(-seq_len // block_size)].long()
    keys = kv_cache[0].index_select(0, blocks).flatten(0, 1)[:seq_len]
    values = kv_cache[1].index_select(0, blocks).flatten(0, 1)[:seq_len]
    return keys, values


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, params: AttentionParams) -> torch.Tensor:
    """Attention of the last query.shape[0] positions: [num_queries, num_heads, head_dim]."""
    num_queries, num_heads, _ = query.shape
    seq_len, num_kv_heads, _ = keys.shape
    positions = torch.arange(seq_len - num_queries, seq_len, device=query.device)[:, None]
    key_positions = torch.arange(seq_len, device=query.device)[None, :]
    visible = key_positions <= positions
    if params.sliding_window is not None:
        visible &= key_positions > positions - params.sliding_window
    q = query.transpose(0, 1)
    k = keys.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1)
    v = values.repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1)
    if params.soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=params.scale).transpose(0, 1)
    scores = torch.matmul(q.float(), k.float().transpose(1, 2)) * params.scale
    scores = params.soft_cap * torch.tanh(scores / params.soft_cap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.matmul(weights, v.float()).to(query.dtype).transpose(0, 1)
