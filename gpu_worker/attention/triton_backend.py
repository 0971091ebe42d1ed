"""How does attention run on a GPU with nothing but torch and Triton?

Lengths, block tables and lists of work are read from device memory, and launches depend on tensor shapes alone: a
captured graph that holds `prepare` and all layers' `forward` serves every batch of its padded sizes. Rows that are
padding compute no token: their query_start does not rise, or their length is 0.
"""

import torch

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams
from gpu_worker.attention.triton_decode import choose_decode_tile, decode
from gpu_worker.attention.triton_plan import DecodePlan, plan_decode, plan_prefill
from gpu_worker.attention.triton_prefill import LARGE_TILE_ROWS, PrefillPlan, choose_prefill_tile, prefill
from gpu_worker.kernels.triton_jit import can_overlap, multiprocessors, shared_bytes

# Programs that one multiprocessor runs at a time.
_PREFILLS_PER_MULTIPROCESSOR = 2


class TritonAttention:
    """Sequences that compute one token and those that compute several go through a kernel each.

    In deterministic mode all go through the second, with tiles of one shape: a token's result is the same to the bit
    whether it is computed alone or in a chunk of any size.

    `prepare` must run once per step batch before the first layer, on the same stream.
    """

    reads_device_only = True

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        windows: frozenset[int | None],
        dtype: torch.dtype,
        device: torch.device,
        deterministic: bool = False,
    ) -> None:
        """Fix the shapes.

        Args:
            num_heads, num_kv_heads: of this rank.
            windows: the sliding windows that layers of the model have; None stands for full attention.
            deterministic: give a token the same bits in any batch.
        """
        group = num_heads // num_kv_heads
        self._shape = (num_heads, num_kv_heads, head_dim, dtype.itemsize)
        self._windows = windows
        self._deterministic = deterministic
        self._num_prefill_slots = multiprocessors(device) * _PREFILLS_PER_MULTIPROCESSOR
        self._overlap = can_overlap(device)
        self._decode_tile = choose_decode_tile(head_dim, dtype.itemsize, group, shared_bytes(device))
        self._num_decode_slots = multiprocessors(device) * self._decode_tile.programs
        self._prepared: AttentionMetadata | None = None
        self._decode_plans: dict[int | None, DecodePlan] = {}
        self._prefill_plan: PrefillPlan | None = None

    @staticmethod
    def largest_small_prefill(num_heads: int, device: torch.device) -> int:
        """Up to how many tokens in all prefill takes small tiles; another kernel is compiled for more."""
        return (multiprocessors(device) * _PREFILLS_PER_MULTIPROCESSOR * LARGE_TILE_ROWS - 1) // num_heads

    def prepare(self, metadata: AttentionMetadata) -> None:
        """List the work of a step batch, on the device.

        Whether there is work of either kind is told from max_query_len and num_decodes, which are host numbers: in a
        captured graph for mixed batches they must not rule either out.
        """
        query_start, seq_lens = metadata.query_start, metadata.seq_lens
        num_heads, num_kv_heads, head_dim, itemsize = self._shape
        self._decode_plans = {}
        self._prefill_plan = None
        if metadata.num_decodes > 0 and not self._deterministic:
            self._decode_plans = {
                window: plan_decode(query_start, seq_lens, window, num_kv_heads, self._num_decode_slots)
                for window in self._windows
            }
        if metadata.max_query_len > 1 or self._deterministic:
            num_tokens, group = metadata.slot_mapping.shape[0], num_heads // num_kv_heads
            num_rows = 0 if self._deterministic else num_tokens * num_heads
            tile = choose_prefill_tile(head_dim, itemsize, num_rows, group, self._num_prefill_slots)
            min_queries = 1 if self._deterministic else 2
            items = plan_prefill(query_start, seq_lens, num_tokens, tile.tokens(group), min_queries)
            self._prefill_plan = PrefillPlan(items, tile, masks_all=self._deterministic)
        self._prepared = metadata

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """See AttentionBackend.forward. Rows of padding are not written."""
        assert self._prepared is metadata
        assert query.is_contiguous()
        assert kv_cache.is_contiguous()
        assert metadata.block_tables.stride(1) == 1
        output = torch.empty_like(query)
        tables, query_start = metadata.block_tables, metadata.query_start
        if self._prefill_plan is not None:
            prefill(
                query,
                kv_cache,
                output,
                tables,
                query_start,
                metadata.seq_lens,
                self._prefill_plan,
                params,
                self._overlap,
            )
        if self._decode_plans:
            plan = self._decode_plans[params.sliding_window]
            decode(query, kv_cache, output, tables, query_start, plan, params, self._decode_tile, self._overlap)
        return output.flatten(1)
