"""How many KV blocks fit the device, and what are they made of?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from gpu_worker.cpu_limits import available_memory_bytes

_GIB = 2**30
# Of the memory that is available once the weights are loaded; the rest is for activations and for other processes.
_DEFAULT_CPU_SHARE = 0.5


class CacheTooSmallError(Exception):
    """There is no memory for the KV blocks that are needed; the message has the numbers."""


class ModelTooLargeError(Exception):
    """The device has too little memory for weights and steps; the message has the numbers."""


@contextmanager
def explaining_memory(doing: str, device: torch.device) -> Iterator[None]:
    """Say in one line how much memory there is where a GPU's runs out.

    Raises:
        ModelTooLargeError: it did, while `doing`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        own_bytes = torch.cuda.memory_reserved(device)
        raise ModelTooLargeError(
            f"the memory of {device} ran out while {doing}: of {total_bytes / _GIB:.1f} GiB this process has "
            f"{own_bytes / _GIB:.1f}, others have {(total_bytes - free_bytes - own_bytes) / _GIB:.1f}: serve a smaller "
            "model, raise --tensor-parallel-size, or lower --max-num-batched-tokens"
        ) from error


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Of one rank's KV cache: per layer a tensor [2, num_blocks, block_size, num_kv_heads, head_dim]."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device) -> list[torch.Tensor]:
        """The cache, one tensor per layer, zeroed. On a CPU memory is only taken as blocks are first written."""
        shape = (2, num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
        if device.type != "cpu":
            return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(self.num_layers)]
        # torch.zeros writes every page; numpy leaves that to the kernel, page by page as they are used.
        layer_bytes = num_blocks * self.block_bytes // self.num_layers
        layers = [torch.from_numpy(np.zeros(layer_bytes, dtype=np.uint8)) for _ in range(self.num_layers)]
        return [layer.view(self.dtype).view(shape) for layer in layers]


def count_blocks(
    shape: CacheShape, budget_bytes: int, max_model_len: int, max_num_seqs: int, wanted: int | None
) -> int:
    """Blocks to offer to the scheduler: those wanted, or what fits, but no more than could ever be used.

    Raises:
        CacheTooSmallError: not even one sequence of max_model_len fits, or not the number that is wanted.
    """
    fitting = max(budget_bytes, 0) // shape.block_bytes
    per_sequence = -(-max_model_len // shape.block_size)
    if wanted is not None:
        if wanted > fitting:
            raise CacheTooSmallError(
                f"{wanted} KV blocks take {wanted * shape.block_bytes / _GIB:.2f} GiB, of which "
                f"{budget_bytes / _GIB:.2f} GiB are left: lower --num-blocks"
            )
        return wanted
    if fitting < per_sequence:
        raise CacheTooSmallError(
            f"one sequence of {max_model_len} tokens takes {per_sequence * shape.block_bytes / _GIB:.2f} GiB of KV "
            f"cache, of which {max(budget_bytes, 0) / _GIB:.2f} GiB are left: lower --max-model-len or give more memory"
        )
    return min(fitting, per_sequence * max_num_seqs)


def cpu_budget_bytes(asked_gib: float | None, num_sharing: int) -> int:
    """Memory for the KV cache on a CPU: what was asked for, else a share of half of what is available now."""
    if asked_gib is not None:
        return int(asked_gib * _GIB)
    return int(available_memory_bytes() * _DEFAULT_CPU_SHARE / num_sharing)


def cuda_budget_bytes(device: torch.device, utilization: float, peak_bytes: int) -> int:
    """Memory for the KV cache on a GPU: its share for this process, less what the worst step takes at its peak.

    Args:
        peak_bytes: what Executor.measure_bytes returned: of a worst-case step, weights and graphs included.
    """
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    others_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved(device)
    return int(total_bytes * utilization) - others_bytes - peak_bytes
