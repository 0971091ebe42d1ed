"""What does every layer need to build itself?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.formats.source import TensorSource
from gpu_worker.kernels.interface import Kernels
from gpu_worker.parallel import ParallelGroup
from gpu_worker.quantization.linear_method import LinearMethod

if TYPE_CHECKING:
    from gpu_worker.kernels.triton_sum_norm import PeerSum


@dataclass(frozen=True, slots=True)
class LayerContext:
    """Where weights come from and where they go, and what computes with them.

    `peer_sum` is there where ranks can sum rows in each other's memory. With `deterministic` a row's bits must not
    depend on the rows beside it.
    """

    source: TensorSource
    kernels: Kernels
    attention: AttentionBackend
    parallel: ParallelGroup
    method: LinearMethod
    device: torch.device
    peer_sum: "PeerSum | None" = None
    deterministic: bool = False

    def read_vector(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight, [size] in the compute dtype, the same on every rank."""
        return self.copy(self.source.read(name, (size,)), self.method.compute_dtype)

    def copy(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A contiguous copy on the device, which does not keep the checkpoint's memory alive."""
        return torch.empty(tensor.shape, dtype=dtype, device=self.device).copy_(tensor)
