"""How does one query per sequence attend to everything its sequence holds?

One program has one key/value head of one part of a sequence, and all query heads that read it as the rows of its
tiles. Softmax is kept as running maximum and sum: Dao et al., "FlashAttention", algorithm 1; parts are merged as in
Dao et al., "Flash-Decoding for long-context inference". The last part of a sequence to be done merges them all, in
their order: a result does not depend on which part that is.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from gpu_worker.attention.backend import AttentionParams
from gpu_worker.attention.triton_plan import DECODE_FIELDS, DecodePlan
from gpu_worker.attention.triton_tile import load_keys, load_values, prefetch_tile, scores_of
from gpu_worker.kernels.triton_jit import device_function, kernel, launch_next, next_power_of_2, wait_for_inputs

# The least rows of a matrix instruction.
_MIN_ROWS = 16
_TILE_BYTES = 16 * 1024
_MAX_TILE_KEYS = 64
# Block table, then keys and values: the latter are one tile ahead.
_STAGES, _PROGRAMS = 4, 4
# Two tiles ahead, where a multiprocessor has room for several such programs, so that more is under way at a time.
_DEEP_STAGES, _DEEP_PROGRAMS = 5, 3
_DEEP_BYTES = _DEEP_PROGRAMS * 72 * 1024
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """How a program reads keys and values: tiles of `keys` keys, in a pipeline of `stages` stages. `programs`: how many
    a multiprocessor runs at a time."""

    keys: int
    stages: int
    warps: int
    programs: int


def choose_decode_tile(head_dim: int, itemsize: int, group: int, shared_bytes: int) -> DecodeTile:
    """Tiles of 16 KiB and few warps, so that several programs share a multiprocessor, which has `shared_bytes` of
    shared memory. Source: benchmarks/kernels.py."""
    dim_block = next_power_of_2(head_dim)
    rows = max(_MIN_ROWS, next_power_of_2(group))
    keys = max(16, min(_MAX_TILE_KEYS, _TILE_BYTES // (dim_block * itemsize)))
    warps = max(2, min(8, rows * dim_block * itemsize // 2048))
    if shared_bytes >= _DEEP_BYTES:
        return DecodeTile(keys, _DEEP_STAGES, warps, _DEEP_PROGRAMS)
    return DecodeTile(keys, _STAGES, warps, _PROGRAMS)


def decode(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    plan: DecodePlan,
    params: AttentionParams,
    tile: DecodeTile,
    overlap: bool,
) -> None:
    """Fill the output rows of the plan's sequences.

    Args:
        query, output: [num_tokens, num_heads, head_dim].
        kv_cache: [2, num_blocks, block_size, num_kv_heads, head_dim].
        block_tables: [num_seqs, max_blocks] int32.
    """
    _, num_heads, head_dim = query.shape
    _, _, block_size, num_kv_heads, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    dim_block = next_power_of_2(head_dim)
    group_block = next_power_of_2(group)
    max_items = plan.items.shape[0]
    partials = query.new_empty((max_items, num_heads, head_dim), dtype=torch.float32)
    statistics = query.new_empty((max_items, num_heads, 2), dtype=torch.float32)
    _decode_kernel[(num_kv_heads, max_items)](
        query,
        kv_cache,
        output,
        partials,
        statistics,
        plan.arrivals,
        plan.items,
        query_start,
        block_tables,
        kv_cache.shape[1],
        block_tables.stride(0),
        params.scale * _LOG2_E,
        params.soft_cap or 0.0,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        ROWS=max(_MIN_ROWS, group_block),
        HEAD_DIM=head_dim,
        DIM_BLOCK=dim_block,
        BLOCK_SIZE=block_size,
        KEYS=tile.keys,
        STAGES=tile.stages,
        GROUP_BLOCK=group_block,
        MERGE=max(1, min(16, 4096 // (group_block * dim_block))),
        SOFT_CAP=params.soft_cap is not None,
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )


@kernel("num_blocks", "table_stride")
def _decode_kernel(
    query_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partials_ptr: tl.tensor,
    statistics_ptr: tl.tensor,
    arrivals_ptr: tl.tensor,
    items_ptr: tl.tensor,
    query_start_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    num_blocks: tl.tensor,
    table_stride: int,
    scale: float,
    soft_cap: float,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    MERGE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """See decode. partials: [items, NUM_HEADS, HEAD_DIM], not yet divided by their sums; statistics: [items,
    NUM_HEADS, 2], each part's largest score (times log2 e) and sum of weights."""
    launch_next(OVERLAP)
    head = tl.program_id(0)
    item = tl.program_id(1)
    # The plan, the tables and all but the newest keys and values are there already, so what is known of the work is
    # read, and its first tile sent for, while the kernel before still makes the query.
    fields = items_ptr + item * DECODE_FIELDS
    start, end = tl.load(fields + 1), tl.load(fields + 2)
    sequence = tl.maximum(tl.load(fields), 0)
    token = tl.load(query_start_ptr + sequence).to(tl.int64)
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    keys_ptr = cache_ptr + head * HEAD_DIM
    values_ptr = keys_ptr + num_blocks.to(tl.int64) * (BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM)
    if OVERLAP and end > start:
        prefetch_tile(
            keys_ptr, values_ptr, table, start, end, NUM_KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, KEYS, OVERLAP
        )
    wait_for_inputs(OVERLAP)
    if end > start:
        rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM_BLOCK)
        in_tile = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        row_heads = token * NUM_HEADS + head * GROUP + rows
        places = row_heads[:, None] * HEAD_DIM + dims[None, :]
        query = tl.load(query_ptr + places, mask=in_tile, other=0.0)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        result = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
        for first in tl.range(start, end, KEYS, num_stages=STAGES):
            positions = first + tl.arange(0, KEYS)
            real = positions < end
            keys, tokens = load_keys(keys_ptr, table, positions, real, NUM_KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE)
            scores = scores_of(query, keys, scale, soft_cap, SOFT_CAP)
            scores = tl.where(real[None, :], scores, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_largest[:, None])
            shrink = tl.exp2(largest - new_largest)
            total = total * shrink + tl.sum(weights, axis=1)
            values = load_values(values_ptr, tokens, real, HEAD_DIM, DIM_BLOCK)
            result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
            largest = new_largest
        if tl.load(fields + 4) == 1:
            tl.store(out_ptr + places, (result / total[:, None]).to(out_ptr.dtype.element_ty), mask=in_tile)
        else:
            part_heads = item.to(tl.int64) * NUM_HEADS + head * GROUP + rows
            tl.store(partials_ptr + part_heads[:, None] * HEAD_DIM + dims[None, :], result, mask=in_tile)
            tl.store(statistics_ptr + part_heads * 2, largest, mask=rows < GROUP)
            tl.store(statistics_ptr + part_heads * 2 + 1, total, mask=rows < GROUP)
            _merge_if_last(
                out_ptr,
                partials_ptr,
                statistics_ptr,
                arrivals_ptr,
                tl.load(fields + 3),
                tl.load(fields + 4),
                token,
                head,
                NUM_HEADS,
                NUM_KV_HEADS,
                GROUP,
                GROUP_BLOCK,
                HEAD_DIM,
                DIM_BLOCK,
                MERGE,
            )


@device_function
def _merge_if_last(
    out_ptr: tl.tensor,
    partials_ptr: tl.tensor,
    statistics_ptr: tl.tensor,
    arrivals_ptr: tl.tensor,
    first_item: tl.tensor,
    num_parts: tl.tensor,
    token: tl.tensor,
    head: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    MERGE: tl.constexpr,
) -> None:
    """Count this part; where it was the last, merge MERGE parts at a time and leave the count at zero again."""
    # All threads' stores come before the one atomic that makes them known.
    tl.debug_barrier()
    count_ptr = arrivals_ptr + first_item * NUM_KV_HEADS + head
    if tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu") == num_parts - 1:
        tl.store(count_ptr, 0)
        rows, dims = tl.arange(0, GROUP_BLOCK), tl.arange(0, DIM_BLOCK)
        in_row = rows < GROUP
        largest = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_BLOCK], tl.float32)
        result = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
        for first in range(0, num_parts, MERGE):
            parts = first + tl.arange(0, MERGE)
            part_heads = ((first_item + parts).to(tl.int64) * NUM_HEADS)[:, None] + (head * GROUP + rows)[None, :]
            real = (parts < num_parts)[:, None] & in_row[None, :]
            tops = tl.load(statistics_ptr + part_heads * 2, mask=real, other=float("-inf"), cache_modifier=".cg")
            totals = tl.load(statistics_ptr + part_heads * 2 + 1, mask=real, other=0.0, cache_modifier=".cg")
            pieces = tl.load(
                partials_ptr + part_heads[:, :, None] * HEAD_DIM + dims[None, None, :],
                mask=real[:, :, None] & (dims < HEAD_DIM)[None, None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            # Rows past the group are finite, so that -inf is never taken from -inf.
            new_largest = tl.where(in_row, tl.maximum(largest, tl.max(tops, axis=0)), 0.0)
            weights = tl.exp2(tops - new_largest[None, :])
            shrink = tl.exp2(largest - new_largest)
            total = total * shrink + tl.sum(weights * totals, axis=0)
            result = result * shrink[:, None] + tl.sum(weights[:, :, None] * pieces, axis=0)
            largest = new_largest
        places = (token * NUM_HEADS + head * GROUP + rows)[:, None] * HEAD_DIM + dims[None, :]
        result = (result / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + places, result, mask=in_row[:, None] & (dims < HEAD_DIM)[None, :])
