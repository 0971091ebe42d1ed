"""How do queries and keys get normed and rotated, and keys and values into the cache, in one launch?

Source: Su et al., "RoFormer", section 3.2; per-head RMS norm as in Henry et al., "Query-Key Normalization for
Transformers", section 3. One program has a few heads of one token. A head in memory and in the program's tiles:

    0 ......... HALF ......... 2 * HALF ......... HEAD_DIM
    first       second         rest (not rotated)
"""

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import (
    check_contiguous,
    device_function,
    kernel,
    launch_next,
    next_power_of_2,
    shared_dtype,
    wait_for_inputs,
)

_HEADS_PER_PROGRAM = 8
_ELEMENTS_PER_WARP = 256


def rope_and_cache(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    overlap: bool,
) -> torch.Tensor:
    """See Kernels.rope_and_cache."""
    check_contiguous(qkv, positions, cos_sin, slot_mapping, kv_cache)
    shared_dtype((qkv, kv_cache))
    assert (q_norm is None) == (k_norm is None)
    num_kv_heads, head_dim = kv_cache.shape[-2:]
    num_tokens, row_size = qkv.shape
    num_heads = row_size // head_dim - 2 * num_kv_heads
    half = cos_sin.shape[-1] // 2
    query = qkv.new_empty((num_tokens, num_heads, head_dim))
    half_block = next_power_of_2(half)
    programs = -(-(num_heads + 2 * num_kv_heads) // _HEADS_PER_PROGRAM)
    _rope_and_cache_kernel[(num_tokens, programs)](
        qkv,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        cos_sin if q_norm is None else q_norm,
        cos_sin if k_norm is None else k_norm,
        query,
        kv_cache.shape[1],
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_cache.shape[2],
        HALF=half,
        HALF_BLOCK=half_block,
        REST_BLOCK=next_power_of_2(head_dim - 2 * half),
        HEADS=_HEADS_PER_PROGRAM,
        NORM=q_norm is not None,
        OVERLAP=overlap,
        num_warps=max(_HEADS_PER_PROGRAM * half_block // _ELEMENTS_PER_WARP, 1),
        launch_pdl=overlap,
    )
    return query


@kernel("num_blocks")
def _rope_and_cache_kernel(
    qkv_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    cos_sin_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    query_ptr: tl.tensor,
    num_blocks: tl.tensor,
    eps: float,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """qkv: [num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM]; query: [num_tokens, NUM_HEADS, HEAD_DIM]; cache: [2,
    num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM]."""
    launch_next(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    is_head = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    low, high = tl.arange(0, HALF_BLOCK), 2 * HALF + tl.arange(0, REST_BLOCK)
    # Where tokens are and go was known before the first layer, so it is read before the product is there.
    angles = cos_sin_ptr + tl.load(positions_ptr + token) * 2 * HALF + low
    cos = tl.load(angles, mask=low < HALF, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=low < HALF, other=0.0)[None, :]
    slot = tl.load(slots_ptr + token)
    if NORM:
        first_weight = _norm_weight(q_norm_ptr, k_norm_ptr, is_query, low, low < HALF)
        second_weight = _norm_weight(q_norm_ptr, k_norm_ptr, is_query, HALF + low, low < HALF)
        rest_weight = _norm_weight(q_norm_ptr, k_norm_ptr, is_query, high, high < HEAD_DIM)
    wait_for_inputs(OVERLAP)

    source = qkv_ptr + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + heads) * HEAD_DIM
    in_half = is_head[:, None] & (low < HALF)[None, :]
    first = tl.load(source[:, None] + low[None, :], mask=in_half, other=0.0)
    second = tl.load(source[:, None] + HALF + low[None, :], mask=in_half, other=0.0)
    # Empty where the whole head is rotated.
    in_rest = is_head[:, None] & (high < HEAD_DIM)[None, :]
    rest = tl.load(source[:, None] + high[None, :], mask=in_rest, other=0.0)
    if NORM:
        total = _row_squares(first) + _row_squares(second) + _row_squares(rest)
        scale = tl.rsqrt(total / HEAD_DIM + eps)
        first = _normalise(first, scale, first_weight, is_value)
        second = _normalise(second, scale, second_weight, is_value)
        rest = _normalise(rest, scale, rest_weight, is_value)

    x, y = first.to(tl.float32), second.to(tl.float32)
    first = tl.where(is_value[:, None], first, (x * cos - y * sin).to(first.dtype))
    second = tl.where(is_value[:, None], second, (y * cos + x * sin).to(second.dtype))

    to_query = query_ptr + (token * NUM_HEADS + heads) * HEAD_DIM
    kv_head = tl.where(is_value, heads - NUM_KV_HEADS, heads) - NUM_HEADS
    row = tl.where(is_value, num_blocks.to(tl.int64) * BLOCK_SIZE, 0) + slot
    to_cache = cache_ptr + (row * NUM_KV_HEADS + kv_head) * HEAD_DIM
    # A negative slot writes nothing: then no head is past the queries.
    in_cache = (heads >= tl.where(slot >= 0, NUM_HEADS, NUM_HEADS + 2 * NUM_KV_HEADS))[:, None]
    tl.store(to_query[:, None] + low[None, :], first, mask=in_half & is_query[:, None])
    tl.store(to_query[:, None] + HALF + low[None, :], second, mask=in_half & is_query[:, None])
    tl.store(to_query[:, None] + high[None, :], rest, mask=in_rest & is_query[:, None])
    tl.store(to_cache[:, None] + low[None, :], first, mask=in_half & in_cache)
    tl.store(to_cache[:, None] + HALF + low[None, :], second, mask=in_half & in_cache)
    tl.store(to_cache[:, None] + high[None, :], rest, mask=in_rest & in_cache)


@device_function
def _row_squares(x: tl.tensor) -> tl.tensor:
    """Sum of squares of each row: [rows, columns] -> [rows] float32."""
    wide = x.to(tl.float32)
    return tl.sum(wide * wide, axis=1)


@device_function
def _norm_weight(
    q_norm_ptr: tl.tensor, k_norm_ptr: tl.tensor, is_query: tl.tensor, columns: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Norm weights of some columns of each head: [heads, columns] float32."""
    of_query = tl.load(q_norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    of_key = tl.load(k_norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_query[:, None], of_query[None, :], of_key[None, :])


@device_function
def _normalise(x: tl.tensor, scale: tl.tensor, weight: tl.tensor, is_value: tl.tensor) -> tl.tensor:
    """Queries and keys times their scale and weight, rounded to their dtype; values as they are."""
    normed = (x.to(tl.float32) * scale[:, None] * weight).to(x.dtype)
    return tl.where(is_value[:, None], x, normed)
