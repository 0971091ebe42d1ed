"""How is the gate of the MLP applied in one pass? Source: Shazeer, "GLU Variants Improve Transformer", section 2."""

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import check_contiguous, kernel, next_power_of_2, wait_for_inputs

_MAX_BLOCK = 1024
_ELEMENTS_PER_WARP = 256


def silu_mul(gate_up: torch.Tensor, overlap: bool) -> torch.Tensor:
    """See Kernels.silu_mul. [num_tokens, 2 * intermediate] -> [num_tokens, intermediate]."""
    check_contiguous(gate_up)
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, size))
    block = min(next_power_of_2(size), _MAX_BLOCK)
    _silu_mul_kernel[(rows, -(-size // block))](
        gate_up,
        out,
        SIZE=size,
        BLOCK=block,
        OVERLAP=overlap,
        num_warps=max(block // _ELEMENTS_PER_WARP, 1),
        launch_pdl=overlap,
    )
    return out


@kernel()
def _silu_mul_kernel(
    gate_up_ptr: tl.tensor, out_ptr: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
) -> None:
    """gate_up: [num_tokens, 2 * SIZE], gates before ups; out: [num_tokens, SIZE]. One program has BLOCK outputs."""
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate = tl.load(gate_up_ptr + row * 2 * SIZE + columns, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * SIZE + SIZE + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    result = wide / (1.0 + tl.exp(-wide)) * up.to(tl.float32)
    tl.store(out_ptr + row * SIZE + columns, result.to(gate.dtype), mask=inside)
