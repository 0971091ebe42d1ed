"""Which attention backend runs?"""

import ctypes
import logging

import torch

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.attention.cpu_backend import CpuAttention
from gpu_worker.attention.torch_backend import TorchAttention

logger = logging.getLogger(__name__)


class AttentionBackendError(Exception):
    """The backend that was asked for cannot run here; the message says why."""


def select_backend(name: str, device: torch.device, head_dim: int, native: ctypes.CDLL | None) -> AttentionBackend:
    """The backend of that name; "auto" is the fastest that can run.

    Args:
        native: the C kernels, None where there are none.

    Raises:
        AttentionBackendError: the backend that was asked for by name cannot run.
    """
    if name == "torch":
        logger.info("attention backend chosen backend=torch reason=asked for")
        return TorchAttention()
    obstacle = _obstacle_to_cpu(device, head_dim, native)
    if native is not None and obstacle is None:
        reason = "asked for" if name == "cpu" else "fastest on this device"
        logger.info("attention backend chosen backend=cpu reason=%s", reason)
        return CpuAttention(native)
    if name == "cpu":
        raise AttentionBackendError(f"attention backend 'cpu' cannot run: {obstacle}; use --attention-backend torch")
    logger.info("attention backend chosen backend=torch reason=%s", obstacle)
    return TorchAttention()


def _obstacle_to_cpu(device: torch.device, head_dim: int, native: ctypes.CDLL | None) -> str | None:
    if device.type != "cpu":
        return f"the device is {device.type}"
    if native is None:
        return "there are no C kernels"
    if not CpuAttention.supports(head_dim):
        return f"heads of {head_dim} are not a multiple of 16 up to 256"
    return None
