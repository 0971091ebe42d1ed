"""How do several new queries of a sequence attend to everything it holds, themselves included?

One program has one key/value head and a tile of queries. A tile's rows are the query heads that read this head, for
some consecutive tokens, so that a short chunk of a prompt fills a tile too:

    row     0 ........ GROUP .......... 2 * GROUP ......... TOKENS * GROUP .. ROWS
            token 0    token 1          token 2             not used

Source: Dao, "FlashAttention-2", algorithm 1, with the causal tiles in a loop of their own.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from gpu_worker.attention.backend import AttentionParams
from gpu_worker.attention.triton_plan import PREFILL_FIELDS
from gpu_worker.attention.triton_tile import load_keys, load_values, scores_of
from gpu_worker.kernels.triton_jit import device_function, kernel, next_power_of_2, wait_for_inputs

LARGE_TILE_ROWS = 128
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """Rows (queries times heads) and keys of a program's tiles.

    With `max_registers` a thread has fewer than it would like, and two programs share a multiprocessor: the one's
    products run while the other takes its exponentials.
    """

    rows: int
    keys: int
    stages: int
    warps: int
    max_registers: int | None = None

    def tokens(self, group: int) -> int:
        """Tokens in a tile of rows when `group` query heads read one key/value head."""
        return self.rows // group


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """Work on sequences that compute several tokens, or on all: items of plan_prefill, [max_items, 2], for a tile.

    With `masks_all` a row's result does not depend on which others are in its tile: all keys take the same loop.
    """

    items: torch.Tensor
    tile: PrefillTile
    masks_all: bool = False


def choose_prefill_tile(head_dim: int, itemsize: int, num_rows: int, group: int, num_slots: int) -> PrefillTile:
    """The fastest shape: large tiles where there are enough of them to go round. Source: benchmarks/kernels.py.

    Args:
        num_rows: queries times heads of the whole batch.
        num_slots: large tiles that the device works on at a time.
    """
    dim_block, group_block = next_power_of_2(head_dim), next_power_of_2(group)
    if itemsize > 2:
        return PrefillTile(max(32, group_block), keys=32, stages=2, warps=8)
    if dim_block > 128:
        return PrefillTile(max(128, group_block), keys=32, stages=3, warps=8)
    if num_rows >= num_slots * LARGE_TILE_ROWS:
        return PrefillTile(max(LARGE_TILE_ROWS, group_block), keys=64, stages=3, warps=8, max_registers=128)
    return PrefillTile(max(64, group_block), keys=64, stages=3, warps=4 if group_block <= 64 else 8)


def prefill(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: PrefillPlan,
    params: AttentionParams,
    overlap: bool,
) -> None:
    """Fill the output rows of the sequences that compute several tokens.

    Args:
        query, output: [num_tokens, num_heads, head_dim].
        kv_cache: [2, num_blocks, block_size, num_kv_heads, head_dim].
        block_tables: [num_seqs, max_blocks] int32.
    """
    _, num_heads, head_dim = query.shape
    _, _, block_size, num_kv_heads, _ = kv_cache.shape
    group, tile = num_heads // num_kv_heads, plan.tile
    _prefill_kernel[(num_kv_heads, plan.items.shape[0])](
        query,
        kv_cache,
        output,
        plan.items,
        query_start,
        seq_lens,
        block_tables,
        kv_cache.shape[1],
        block_tables.stride(0),
        params.scale * _LOG2_E,
        params.soft_cap or 0.0,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        TOKENS=tile.tokens(group),
        ROWS=tile.rows,
        HEAD_DIM=head_dim,
        DIM_BLOCK=next_power_of_2(head_dim),
        BLOCK_SIZE=block_size,
        KEYS=tile.keys,
        STAGES=tile.stages,
        WINDOW=params.sliding_window or 0,
        SOFT_CAP=params.soft_cap is not None,
        MASK_ALL=plan.masks_all,
        OVERLAP=overlap,
        num_warps=tile.warps,
        maxnreg=tile.max_registers,
        launch_pdl=overlap,
    )


@kernel("num_blocks", "table_stride")
def _prefill_kernel(
    query_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    out_ptr: tl.tensor,
    items_ptr: tl.tensor,
    query_start_ptr: tl.tensor,
    seq_lens_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    num_blocks: tl.tensor,
    table_stride: int,
    scale: float,
    soft_cap: float,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    MASK_ALL: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """See prefill. Keys a tile sees, by position:

    first_key ......... all_see ............... end
              no mask           causal mask

    With MASK_ALL or a window there is no part without a mask.
    """
    wait_for_inputs(OVERLAP)
    head = tl.program_id(0)
    item = items_ptr + tl.program_id(1) * PREFILL_FIELDS
    sequence = tl.load(item)
    if sequence >= 0:
        first_row = tl.load(query_start_ptr + sequence)
        num_queries = tl.load(query_start_ptr + sequence + 1) - first_row
        context = tl.load(seq_lens_ptr + sequence) - num_queries
        first_token = tl.load(item + 1) * TOKENS

        rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM_BLOCK)
        tokens = first_token + rows // GROUP
        in_tile = (rows < TOKENS * GROUP) & (tokens < num_queries)
        row_heads = (first_row + tokens).to(tl.int64) * NUM_HEADS + head * GROUP + rows % GROUP
        places = row_heads[:, None] * HEAD_DIM + dims[None, :]
        in_query = in_tile[:, None] & (dims < HEAD_DIM)[None, :]
        query = tl.load(query_ptr + places, mask=in_query, other=0.0)
        positions = context + tokens

        end = context + tl.minimum(first_token + TOKENS, num_queries)
        first_key = 0
        if WINDOW > 0:
            first_key = tl.maximum(context + first_token - WINDOW + 1, 0) // KEYS * KEYS
            all_see = first_key
        elif MASK_ALL:
            all_see = 0
        else:
            all_see = (context + first_token + 1) // KEYS * KEYS
        table = tables_ptr + sequence.to(tl.int64) * table_stride
        keys_ptr = cache_ptr + head * HEAD_DIM
        values_ptr = keys_ptr + num_blocks.to(tl.int64) * (BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM)
        state = (
            tl.full([ROWS], float("-inf"), tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.zeros([ROWS, DIM_BLOCK], tl.float32),
        )
        for first in tl.range(first_key, all_see, KEYS, num_stages=STAGES):
            state = _attend(
                state, query, positions, first, end, keys_ptr, values_ptr, table, scale, soft_cap,
                NUM_KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, KEYS, WINDOW, SOFT_CAP, False,
            )  # fmt: skip
        for first in tl.range(all_see, end, KEYS, num_stages=STAGES):
            state = _attend(
                state, query, positions, first, end, keys_ptr, values_ptr, table, scale, soft_cap,
                NUM_KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, KEYS, WINDOW, SOFT_CAP, True,
            )  # fmt: skip
        _, total, result = state
        tl.store(out_ptr + places, (result / total[:, None]).to(out_ptr.dtype.element_ty), mask=in_query)


@device_function
def _attend(
    state: tl.tuple,
    query: tl.tensor,
    positions: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    table_ptr: tl.tensor,
    scale: float,
    soft_cap: float,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    MASK: tl.constexpr,
) -> tl.tuple:
    """Take in the keys from `first` on: the rows' new largest score, sum of weights and weighted sum of values."""
    largest, total, result = state
    key_positions = first + tl.arange(0, KEYS)
    real = key_positions < end if MASK else tl.full([KEYS], True, tl.int1)
    keys, tokens = load_keys(keys_ptr, table_ptr, key_positions, real, NUM_KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE)
    scores = scores_of(query, keys, scale, soft_cap, SOFT_CAP)
    if MASK:
        seen = key_positions[None, :] <= positions[:, None]
        if WINDOW > 0:
            seen = seen & (key_positions[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    # Under a window a row may see nothing of its tile's first keys: then -inf would be taken from -inf.
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest) if WINDOW > 0 else new_largest
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(weights, axis=1)
    values = load_values(values_ptr, tokens, real, HEAD_DIM, DIM_BLOCK)
    result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
    return new_largest, total, result
