"""How is a linear layer split over the ranks?

column parallel   each rank has some output features; its output is a part of the whole
row parallel      each rank has the matching input features; the ranks' outputs are still to be summed
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_worker.layers.context import LayerContext


@dataclass(frozen=True, slots=True)
class Matrix:
    """A checkpoint's [out_features, in_features] matrix `name`.weight, and the outputs of it that are this rank's."""

    name: str
    out_features: int
    rows: range


class ColumnParallelLinear:
    """Several matrices of the same input, merged into one product: outputs side by side, this rank's part of each."""

    def __init__(self, context: LayerContext, matrices: Sequence[Matrix], in_features: int, bias: bool) -> None:
        dtype = context.method.weight_dtype
        num_rows = sum(len(matrix.rows) for matrix in matrices)
        weight = torch.empty((num_rows, in_features), dtype=dtype, device=context.device)
        biases = torch.empty(num_rows, dtype=dtype, device=context.device) if bias else None
        row = 0
        for matrix in matrices:
            part = slice(row, row + len(matrix.rows))
            shape = (matrix.out_features, in_features)
            weight[part] = context.source.read(f"{matrix.name}.weight", shape, rows=matrix.rows)
            if biases is not None:
                biases[part] = context.source.read(f"{matrix.name}.bias", shape[:1], rows=matrix.rows)
            row = part.stop
        self._multiply = context.method.pack(weight, biases)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] -> [num_tokens, this rank's output features]."""
        return self._multiply(x)


class RowParallelLinear:
    """One matrix, of which this rank has the columns of its inputs."""

    def __init__(
        self, context: LayerContext, name: str, out_features: int, in_features: int, columns: range, bias: bool
    ) -> None:
        dtype = context.method.weight_dtype
        shape = (out_features, in_features)
        weight = context.copy(context.source.read(f"{name}.weight", shape, columns=columns), dtype)
        # The outputs are summed over the ranks, so only one of them may add the bias.
        biases = None
        if bias and context.parallel.rank == 0:
            biases = context.copy(context.source.read(f"{name}.bias", shape[:1]), dtype)
        self._multiply = context.method.pack(weight, biases)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, this rank's input features] -> this rank's part of [num_tokens, out_features]."""
        return self._multiply(x)
