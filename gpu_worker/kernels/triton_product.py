"""How does a linear layer give a row the same bits whatever rows are beside it?

Libraries choose by the number of rows how they cut the sum over the input features, and so the order in which it is
added up. Here one program adds up an output alone, from the first feature to the last. Tiles differ with the number of
rows, and only in how many rows and outputs share what is read.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import check_contiguous, kernel, multiprocessors, shared_bytes, wait_for_inputs


@dataclass(frozen=True, slots=True)
class ProductTile:
    """Rows and outputs of a program, input features of a step. No fewer than 64 rows: tensor cores multiply fewer by
    other instructions, which may round differently."""

    rows: int
    outputs: int
    depth: int
    stages: int
    warps: int

    def num_programs(self, num_tokens: int, outputs: int) -> int:
        """How many programs a product takes."""
        return -(-num_tokens // self.rows) * -(-outputs // self.outputs)

    def shared_bytes(self, itemsize: int) -> int:
        """What a program keeps of rows and weights."""
        return (self.rows + self.outputs) * self.depth * self.stages * itemsize


# Source: benchmarks/kernels.py.
_HALF = (
    ProductTile(rows=64, outputs=32, depth=128, stages=4, warps=4),
    ProductTile(rows=64, outputs=64, depth=64, stages=5, warps=4),
    ProductTile(rows=128, outputs=128, depth=64, stages=4, warps=8),
    ProductTile(rows=128, outputs=256, depth=64, stages=3, warps=8),
)
# Without tensor cores an output is added up feature by feature in any tile.
_FLOAT32 = (ProductTile(rows=32, outputs=32, depth=32, stages=3, warps=4),)
# Programs for each multiprocessor from which on a larger tile is faster.
_ENOUGH_PROGRAMS = 0.7


def product_tiles(itemsize: int, device: torch.device) -> tuple[ProductTile, ...]:
    """The shapes for elements of that size that fit a device, the smallest first. All give the same bits."""
    smallest, *larger = _HALF if itemsize == 2 else _FLOAT32
    return (smallest, *(tile for tile in larger if tile.shared_bytes(itemsize) <= shared_bytes(device)))


def _choose_tile(num_tokens: int, outputs: int, itemsize: int, device: torch.device) -> ProductTile:
    """The largest that is at least half full, if there are enough programs."""
    smallest, *larger = product_tiles(itemsize, device)
    enough = _ENOUGH_PROGRAMS * multiprocessors(device)
    fitting = (tile for tile in reversed(larger) if num_tokens > tile.rows // 2)
    return next((tile for tile in fitting if tile.num_programs(num_tokens, outputs) >= enough), smallest)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    overlap: bool,
    out_dtype: torch.dtype | None = None,
    tile: ProductTile | None = None,
) -> torch.Tensor:
    """x @ weight.T + bias: [num_tokens, out_features] in out_dtype, or in x's; sums are float32.

    Args:
        x: [num_tokens, in_features].
        weight: [out_features, in_features], bias: [out_features], of x's dtype.
        tile: None takes the fastest.
    """
    check_contiguous(x, weight)
    assert x.dtype is weight.dtype
    num_tokens, size = x.shape
    outputs = weight.shape[0]
    out = x.new_empty((num_tokens, outputs), dtype=out_dtype)
    if tile is None:
        tile = _choose_tile(num_tokens, outputs, x.itemsize, x.device)
    _product_kernel[(tile.num_programs(num_tokens, outputs),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        num_tokens,
        IN=size,
        OUT=outputs,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        DEPTH=tile.depth,
        STAGES=tile.stages,
        BIAS=bias is not None,
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )
    return out


@kernel("num_tokens")
def _product_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_tokens: int,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """x: [num_tokens, IN]; weight: [OUT, IN]; bias: [OUT]; out: [num_tokens, OUT]. Programs that follow one another
    have the same outputs, so that their weights are read once."""
    wait_for_inputs(OVERLAP)
    row_tiles = (num_tokens + ROWS - 1) // ROWS
    rows = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(0) // row_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row, is_output = rows < num_tokens, outputs < OUT
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * IN
    weight_columns = weight_ptr + outputs.to(tl.int64)[None, :] * IN
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if BIAS:
        # First in every tile: added last, it would be first where one step is all, as the compiler merges the two.
        total += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[None, :]
    for first in tl.range(0, IN, DEPTH, num_stages=STAGES):
        features = first + tl.arange(0, DEPTH)
        is_feature = features < IN
        x = tl.load(x_rows + features[None, :], mask=is_row[:, None] & is_feature[None, :], other=0.0)
        weights = tl.load(weight_columns + features[:, None], mask=is_output[None, :] & is_feature[:, None], other=0.0)
        total = tl.dot(x, weights, total, input_precision="ieee")
    places = rows.to(tl.int64)[:, None] * OUT + outputs[None, :]
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
