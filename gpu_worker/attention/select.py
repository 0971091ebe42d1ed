"""Which attention backend runs?"""

import ctypes
import logging
from dataclasses import dataclass

import torch

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.attention.cpu_backend import CpuAttention
from gpu_worker.attention.flash_backend import FlashAttention, obstacle_to_flash_attention
from gpu_worker.attention.torch_backend import TorchAttention
from gpu_worker.kernels.select import obstacle_to_triton
from gpu_worker.models.config import ModelConfig
from gpu_worker.parallel import ParallelGroup, split_heads

logger = logging.getLogger(__name__)

_NOT_DETERMINISTIC = "its results depend on the batch, which --deterministic forbids"


class AttentionBackendError(Exception):
    """The backend that was asked for cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention on one rank looks like. windows: the sliding windows of its layers, None for full attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: frozenset[int | None]
    dtype: torch.dtype

    @classmethod
    def of_rank(cls, config: ModelConfig, parallel: ParallelGroup, dtype: torch.dtype) -> "AttentionShape":
        """This rank's part of a model's attention."""
        heads = split_heads(config.num_heads, config.num_kv_heads, parallel.rank, parallel.world_size)
        return cls(len(heads.query), len(heads.kv), config.head_dim, frozenset(config.sliding_window), dtype)


def select_backend(
    name: str,
    shape: AttentionShape,
    block_size: int,
    device: torch.device,
    native: ctypes.CDLL | None,
    *,
    deterministic: bool = False,
) -> AttentionBackend:
    """The backend of that name; "auto" is the fastest that can run: the first below that meets no obstacle.

    Args:
        block_size: tokens in a KV block.
        native: the C kernels, None where there are none.
        deterministic: give a token the same bits in any batch.

    Raises:
        AttentionBackendError: the backend that was asked for by name cannot run, or is not deterministic.
    """
    obstacles = {
        "triton": obstacle_to_triton(device),
        "flash_attn": obstacle_to_flash_attention(device, block_size, shape.dtype),
        "cpu": _obstacle_to_cpu(device, shape.head_dim, native),
        "torch": None,
    }
    if deterministic:
        obstacles |= {other: obstacles[other] or _NOT_DETERMINISTIC for other in ("flash_attn", "torch")}
    reasons = "; ".join(f"no {candidate}: {obstacle}" for candidate, obstacle in obstacles.items() if obstacle)
    if name == "auto":
        fastest = next((candidate for candidate, obstacle in obstacles.items() if obstacle is None), None)
        if fastest is None:
            raise AttentionBackendError(f"no attention backend can run ({reasons}): mend one, or drop --deterministic")
        logger.info("attention backend chosen backend=%s reason=fastest that can run (%s)", fastest, reasons)
        name = fastest
    elif obstacles[name] is not None:
        raise AttentionBackendError(
            f"attention backend {name!r} cannot run: {obstacles[name]}; use --attention-backend auto"
        )
    else:
        logger.info("attention backend chosen backend=%s reason=asked for", name)
    if name == "triton":
        return _triton(shape, device, deterministic)
    if name == "flash_attn":
        return FlashAttention()
    if name == "cpu":
        assert native is not None
        return CpuAttention(native)
    return TorchAttention()


def _triton(shape: AttentionShape, device: torch.device, deterministic: bool) -> AttentionBackend:
    from gpu_worker.attention.triton_backend import TritonAttention  # noqa: PLC0415 - triton need not be installed

    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
    return TritonAttention(*heads, shape.windows, shape.dtype, device, deterministic)


def _obstacle_to_cpu(device: torch.device, head_dim: int, native: ctypes.CDLL | None) -> str | None:
    if device.type != "cpu":
        return f"the device is {device.type}"
    if native is None:
        return "there are no C kernels"
    if not CpuAttention.supports(head_dim):
        return f"heads of {head_dim} are not a multiple of 16 up to 256"
    return None
