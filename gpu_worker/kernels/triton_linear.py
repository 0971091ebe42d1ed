"""How does a linear layer with very few rows of input run at the speed of its weights?

One program has a few outputs and reads their weights whole, before it waits for the kernel that makes its input: with
overlapping launches the weights arrive while that kernel still runs. The norm before the product and the gate after it
take no launch of their own: each program norms the input again, which is small.
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

MAX_TOKENS = 8
"""Rows of input beyond which a matrix product by tensor cores is faster."""
_MAX_OUTPUTS_PER_PROGRAM = 4
_PAIRS_PER_PROGRAM = 8192
_WARPS = 4


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool, overlap: bool
) -> torch.Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, in_features], at most MAX_TOKENS rows, bfloat16 or float16, in_features even.
        weight: [out_features, in_features]; bias: [out_features].
        gated: the first half of the outputs are gates: return silu(first half) * second half.

    Returns:
        [num_tokens, out_features], or half of that.
    """
    return _launch(x, None, None, weight, bias, None, 0.0, gated, overlap)


def add_norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gated: bool,
    overlap: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of x and residual, normalised and multiplied: see linear and Kernels.add_rms_norm.

    Args:
        x, residual: [num_tokens, in_features].

    Returns:
        The product, and x + residual: a new tensor, since every program reads the residual.
    """
    total = torch.empty_like(residual)
    return _launch(x, residual, norm, weight, bias, total, eps, gated, overlap), total


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    total: torch.Tensor | None,
    eps: float,
    gated: bool,
    overlap: bool,
) -> torch.Tensor:
    check_contiguous(x, weight)
    shared_dtype((x, weight))
    num_tokens, size = x.shape
    assert num_tokens <= MAX_TOKENS
    assert size % 2 == 0
    assert x.dtype.itemsize == 2
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty((num_tokens, outputs))
    pairs = next_power_of_2(size // 2)
    rows = max(1, min(_MAX_OUTPUTS_PER_PROGRAM, _PAIRS_PER_PROGRAM // pairs))
    packed = x.view(torch.int32)
    _linear_kernel[(-(-outputs // rows),)](
        packed,
        packed if residual is None else residual.view(torch.int32),
        packed if norm is None else norm.view(torch.int32),
        weight.view(torch.int32),
        x if bias is None else bias,
        packed if total is None else total.view(torch.int32),
        out,
        eps,
        num_tokens,
        IN=size // 2,
        OUT=outputs,
        TOKENS=next_power_of_2(num_tokens),
        ROWS=rows,
        COLUMNS=pairs,
        NORM=norm is not None,
        GATED=gated,
        BIAS=bias is not None,
        OVERLAP=overlap,
        num_warps=_WARPS,
        launch_pdl=overlap,
    )
    return out


@kernel("num_tokens")
def _linear_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    total_ptr: tl.tensor,
    out_ptr: tl.tensor,
    eps: float,
    num_tokens: int,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """x, residual, total: [num_tokens, IN] pairs; weight: [OUT, IN] pairs, twice the rows if GATED; norm: [IN] pairs;
    out: [num_tokens, OUT].

    A pair is two elements in an int32, taken apart only after the wait: a conversion before it would wait for the
    weights, and the input be asked for only when they are there.
    """
    launch_next(OVERLAP)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_row, is_column = rows < OUT, columns < IN
    places = rows.to(tl.int64)[:, None] * IN + columns[None, :]
    inside = is_row[:, None] & is_column[None, :]
    weights = tl.load(weight_ptr + places, mask=inside, other=0)
    if GATED:
        ups = tl.load(weight_ptr + OUT * IN + places, mask=inside, other=0)
    if NORM:
        norm = tl.load(norm_ptr + columns, mask=is_column, other=0)
    wait_for_inputs(OVERLAP)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    for token in tl.static_range(TOKENS):
        here = is_column & (token < num_tokens)
        low, high = _unpack(tl.load(x_ptr + token * IN + columns, mask=here, other=0), dtype)
        if NORM:
            residual_low, residual_high = _unpack(
                tl.load(residual_ptr + token * IN + columns, mask=here, other=0), dtype
            )
            low, high = _round(low + residual_low, dtype), _round(high + residual_high, dtype)
            is_first = tl.program_id(0) == 0
            tl.store(total_ptr + token * IN + columns, _pack(low, high, dtype), mask=here & is_first)
            scale = tl.rsqrt(tl.sum(low * low + high * high, axis=0) / (2 * IN) + eps)
            norm_low, norm_high = _unpack(norm, dtype)
            low, high = _round(low * scale * norm_low, dtype), _round(high * scale * norm_high, dtype)
        result = _multiply(weights, low, high, dtype)
        if BIAS:
            result += tl.load(bias_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
        if GATED:
            up = _multiply(ups, low, high, dtype)
            if BIAS:
                up += tl.load(bias_ptr + OUT + rows, mask=is_row, other=0.0).to(tl.float32)
            # Rounded in between, as two launches would.
            gate = _round(result, dtype)
            result = gate / (1.0 + tl.exp(-gate)) * _round(up, dtype)
        tl.store(out_ptr + token * OUT + rows, result.to(dtype), mask=is_row & (token < num_tokens))


@device_function
def _multiply(weights: tl.tensor, low: tl.tensor, high: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """weights: [rows, columns] pairs; low, high: [columns] float32; returns [rows] float32."""
    weights_low, weights_high = _unpack(weights, dtype)
    return tl.sum(weights_low * low[None, :] + weights_high * high[None, :], axis=1)


@device_function
def _unpack(pairs: tl.tensor, dtype: tl.constexpr) -> tl.tuple:
    """The first and the second element of each pair, as float32."""
    low = (pairs & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
    high = ((pairs >> 16) & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
    return low, high


@device_function
def _pack(low: tl.tensor, high: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Pairs of two float32."""
    low_bits = low.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
    high_bits = high.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low_bits | (high_bits << 16)).to(tl.int32, bitcast=True)


@device_function
def _round(value: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Rounded as if it had been stored."""
    return value.to(dtype).to(tl.float32)
