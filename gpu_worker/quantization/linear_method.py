"""How is a linear layer's weight kept and multiplied?"""

from collections.abc import Callable
from typing import Protocol

import torch

LinearOp = Callable[[torch.Tensor], torch.Tensor]
"""x [num_tokens, in_features] -> [num_tokens, out_features], both in the method's compute dtype."""


class LinearMethod(Protocol):
    """One way to keep weights. The dtypes are fixed per method.

    Attributes:
        compute_dtype: of activations, norms and the KV cache.
        weight_dtype: that `pack` takes.
        table_dtype: in which the embedding's rows are kept.
    """

    compute_dtype: torch.dtype
    weight_dtype: torch.dtype
    table_dtype: torch.dtype

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """Take over the head's weight, [vocab, in_features] of weight_dtype. The result gives float32, not rounded."""
        ...

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """Take over a weight [out_features, in_features] and a bias [out_features] of weight_dtype.

        The caller drops both; what the result keeps of them is all the memory the layer takes.
        """
        ...
