"""How does a linear layer with one or a few rows of input run at the speed of its weights?

One program has a few outputs and reads their weights whole, before it waits for the kernel that makes its input: with
overlapping launches the weights arrive while that kernel still runs.
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
    triton_dtype,
    wait_for_inputs,
)

_MAX_TOKENS = 4
_MAX_TOKENS_LARGE = 2
_LARGE_WEIGHTS = 2**24
_MAX_OUTPUTS_PER_PROGRAM = 4
_PAIRS_PER_PROGRAM = 8192
_WARPS = 4


def is_fastest(num_tokens: int, weight: torch.Tensor) -> bool:
    """Whether `linear` can multiply this many rows, and no slower than tensor cores. Source: benchmarks/kernels.py."""
    limit = _MAX_TOKENS if weight.numel() < _LARGE_WEIGHTS else _MAX_TOKENS_LARGE
    return num_tokens <= limit and weight.dtype.itemsize == 2 and weight.shape[1] % 2 == 0


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    overlap: bool,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x @ weight.T + bias: [num_tokens, out_features] in out_dtype, or in x's.

    Args:
        x: [num_tokens, in_features] bfloat16 or float16, in_features even.
        weight: [out_features, in_features], bias: [out_features], of x's dtype. They are read before the kernels
            enqueued so far are done.
    """
    check_contiguous(x, weight)
    assert shared_dtype((x, weight)).itemsize == 2
    num_tokens, size = x.shape
    assert size % 2 == 0
    outputs = weight.shape[0]
    out = x.new_empty((num_tokens, outputs), dtype=out_dtype)
    pairs = next_power_of_2(size // 2)
    rows = max(1, min(_MAX_OUTPUTS_PER_PROGRAM, _PAIRS_PER_PROGRAM // pairs))
    _linear_kernel[(-(-outputs // rows),)](
        x.view(torch.int32),
        weight.view(torch.int32),
        x if bias is None else bias,
        out,
        num_tokens,
        IN=size // 2,
        OUT=outputs,
        TOKENS=next_power_of_2(num_tokens),
        ROWS=rows,
        COLUMNS=pairs,
        DTYPE=triton_dtype(x.dtype),
        BIAS=bias is not None,
        OVERLAP=overlap,
        num_warps=_WARPS,
        launch_pdl=overlap,
    )
    return out


@kernel("num_tokens")
def _linear_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_tokens: int,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """x: [num_tokens, IN] pairs; weight: [OUT, IN] pairs; bias: [OUT]; out: [num_tokens, OUT].

    A pair is two elements of DTYPE in an int32, taken apart only after the wait: a conversion before it would wait for
    the weights, and the input be asked for only when they are there.
    """
    launch_next(OVERLAP)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_row, is_column = rows < OUT, columns < IN
    places = rows.to(tl.int64)[:, None] * IN + columns[None, :]
    weights = tl.load(weight_ptr + places, mask=is_row[:, None] & is_column[None, :], other=0)
    wait_for_inputs(OVERLAP)
    for token in tl.static_range(TOKENS):
        # Nothing is inside for a token that is not there.
        is_input = columns < tl.where(token < num_tokens, IN, 0)
        is_output = rows < tl.where(token < num_tokens, OUT, 0)
        low, high = _unpack(tl.load(x_ptr + token * IN + columns, mask=is_input, other=0), DTYPE)
        weights_low, weights_high = _unpack(weights, DTYPE)
        result = tl.sum(weights_low * low[None, :] + weights_high * high[None, :], axis=1)
        if BIAS:
            result += tl.load(bias_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
        tl.store(out_ptr + token * OUT + rows, result.to(out_ptr.dtype.element_ty), mask=is_output)


@device_function
def _unpack(pairs: tl.tensor, dtype: tl.constexpr) -> tl.tuple:
    """The first and the second element of each pair, as float32."""
    low = (pairs & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
    high = ((pairs >> 16) & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
    return low, high
