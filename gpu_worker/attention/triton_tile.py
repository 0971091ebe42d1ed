"""How are a tile's keys and values found in the cache, and its scores computed?"""

import triton.language as tl

from gpu_worker.kernels.triton_jit import device_function, prefetch_lines

_LINE_BITS = tl.constexpr(1024)


@device_function
def load_keys(
    cache_ptr: tl.tensor,
    table_ptr: tl.tensor,
    positions: tl.tensor,
    real: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tuple:
    """Keys at the positions, [DIM_BLOCK, positions], and where in the cache their tokens begin, [positions] int64.

    cache_ptr: this head's keys, [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM]; table_ptr: the sequence's block ids.
    """
    blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=real, other=0).to(tl.int64)
    tokens = (blocks * BLOCK_SIZE + positions % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
    dims = tl.arange(0, DIM_BLOCK)
    inside = real[None, :]
    if HEAD_DIM < DIM_BLOCK:
        inside = inside & (dims < HEAD_DIM)[:, None]
    return tl.load(cache_ptr + tokens[None, :] + dims[:, None], mask=inside, other=0.0), tokens


@device_function
def load_values(
    cache_ptr: tl.tensor, tokens: tl.tensor, real: tl.tensor, HEAD_DIM: tl.constexpr, DIM_BLOCK: tl.constexpr
) -> tl.tensor:
    """Values of tokens that begin there, [tokens, DIM_BLOCK]. cache_ptr: this head's values."""
    dims = tl.arange(0, DIM_BLOCK)
    inside = real[:, None]
    if HEAD_DIM < DIM_BLOCK:
        inside = inside & (dims < HEAD_DIM)[None, :]
    return tl.load(cache_ptr + tokens[:, None] + dims[None, :], mask=inside, other=0.0)


@device_function
def prefetch_tile(
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    table_ptr: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Have the keys and values at positions start .. end, at most KEYS of them, brought into the L2 cache."""
    line: tl.constexpr = _LINE_BITS // keys_ptr.dtype.element_ty.primitive_bitwidth
    num_lines: tl.constexpr = DIM_BLOCK // line if line < DIM_BLOCK else 1
    positions = start + tl.arange(0, KEYS)
    # Positions past the end stand for the last one: it is asked for again, which costs next to nothing.
    positions = tl.minimum(positions, end - 1)
    blocks = tl.load(table_ptr + positions // BLOCK_SIZE).to(tl.int64)
    tokens = (blocks * BLOCK_SIZE + positions % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
    lines = tokens[:, None] + tl.minimum(tl.arange(0, num_lines) * line, HEAD_DIM - 1)[None, :]
    prefetch_lines(keys_ptr + lines, OVERLAP)
    prefetch_lines(values_ptr + lines, OVERLAP)


@device_function
def scores_of(query: tl.tensor, keys: tl.tensor, scale: float, soft_cap: float, SOFT_CAP: tl.constexpr) -> tl.tensor:
    """Scores times log2 e, [rows, keys] float32: exp2 of them is a weight. `scale` holds log2 e.

    SOFT_CAP: c * tanh(s / c), with tanh(x) = 1 - 2 / (exp(2 x) + 1), which neither overflows nor needs a library.
    """
    scores = tl.dot(query, keys, input_precision="ieee") * scale
    if SOFT_CAP:
        # scores / soft_cap is x * log2 e, so exp(2 x) is exp2 of twice that.
        scores = soft_cap * 1.4426950408889634 * (1.0 - 2.0 / (tl.exp2(scores * (2.0 / soft_cap)) + 1.0))
    return scores
