"""Which implementation of the fused operations does a device get?"""

import ctypes
import logging
from pathlib import Path

import torch

from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kernels.native import NativeKernelsError, load_native
from gpu_worker.kernels.reference import ReferenceKernels

logger = logging.getLogger(__name__)


def find_native(device: torch.device, cache_dir: Path) -> ctypes.CDLL | None:
    """The C kernels for a CPU; None for another device, or where they cannot be had, which is warned of."""
    if device.type != "cpu":
        return None
    try:
        return load_native(cache_dir)
    except NativeKernelsError as error:
        logger.warning("no C kernels, plain torch is used instead and is much slower reason=%s", error)
        return None


def select_kernels(native: ctypes.CDLL | None) -> Kernels:
    """The C kernels where there are any, else the torch reference."""
    kernels = ReferenceKernels() if native is None else CpuKernels(native)
    logger.info("kernels chosen kernels=%s", type(kernels).__name__)
    return kernels
