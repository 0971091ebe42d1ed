"""How is the residual stream added to and normalised in one pass?

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4. One program has one row.
"""

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import check_contiguous, device_function, kernel, row_shape, wait_for_inputs


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, overlap: bool) -> torch.Tensor:
    """See Kernels.rms_norm. x: [num_tokens, hidden], weight: [hidden]."""
    return _launch(x, x, weight, eps, overlap, add=False)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, overlap: bool
) -> torch.Tensor:
    """See Kernels.add_rms_norm. x, residual: [num_tokens, hidden]; the residual is changed in place."""
    assert residual.shape == x.shape
    assert residual.dtype is torch.float32
    return _launch(x, residual, weight, eps, overlap, add=True)


def _launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, overlap: bool, *, add: bool
) -> torch.Tensor:
    check_contiguous(x, residual, weight)
    out = torch.empty_like(x, dtype=weight.dtype)
    rows, size = x.shape
    block, warps = row_shape(size)
    _norm_kernel[(rows,)](
        x,
        residual,
        weight,
        out,
        eps,
        SIZE=size,
        BLOCK=block,
        ADD=add,
        OVERLAP=overlap,
        num_warps=warps,
        launch_pdl=overlap,
    )
    return out


@kernel()
def _norm_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    eps: float,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """x, residual, out: [num_tokens, SIZE]; weight: [SIZE]. With ADD, residual += x, float32, and it is normalised."""
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * SIZE + columns
    x = tl.load(x_ptr + row, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row, mask=inside, other=0.0)
        tl.store(residual_ptr + row, x, mask=inside)
    store_normed(out_ptr, row, inside, x, weight, eps, SIZE)


@device_function
def store_normed(
    out_ptr: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """Normalise a row of SIZE elements, the others 0, and write it at its place."""
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    tl.store(out_ptr + place, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)
