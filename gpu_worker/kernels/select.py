"""Which implementation of the fused operations does a device get?"""

import ctypes
import importlib.util
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kernels.native import NativeKernelsError, load_native
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.models.config import ModelConfig
from gpu_worker.parallel import ParallelGroup
from gpu_worker.peer_memory import most_rows, open_peer_memory

if TYPE_CHECKING:
    from gpu_worker.kernels.triton_sum_norm import PeerSum

logger = logging.getLogger(__name__)

_LEAST_CAPABILITY = (8, 0)


def find_native(device: torch.device, cache_dir: Path) -> ctypes.CDLL | None:
    """The C kernels for a CPU; None for another device, or where they cannot be had, which is warned of."""
    if device.type != "cpu":
        return None
    try:
        return load_native(cache_dir)
    except NativeKernelsError as error:
        logger.warning("no C kernels, plain torch is used instead and is much slower reason=%s", error)
        return None


def obstacle_to_triton(device: torch.device) -> str | None:
    """Why our Triton kernels cannot run on a device, None if they can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and 8.0 is needed"
    return None


def select_kernels(device: torch.device, native: ctypes.CDLL | None, *, deterministic: bool = False) -> Kernels:
    """Triton kernels on a GPU and C kernels on a CPU where there are any, else the torch reference.

    Args:
        deterministic: draw the same from a row whatever rows are beside it.
    """
    kernels: Kernels
    obstacle = obstacle_to_triton(device)
    if obstacle is None:
        from gpu_worker.kernels.triton_kernels import TritonKernels  # noqa: PLC0415 - triton need not be installed

        kernels = TritonKernels(device, deterministic)
    elif native is not None:
        kernels = CpuKernels(native)
    else:
        kernels = ReferenceKernels()
        if device.type == "cuda":
            logger.warning("no Triton kernels, plain torch is used instead and is much slower reason=%s", obstacle)
    logger.info("kernels chosen kernels=%s", type(kernels).__name__)
    return kernels


def select_peer_sum(
    parallel: ParallelGroup,
    max_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shares_host: bool,
    deterministic: bool = False,
) -> "PeerSum | None":
    """How ranks sum rows, in steps of up to max_tokens; called by all of them together.

    None: by collective calls alone; also in deterministic mode if longer steps would need these.
    """
    if not shares_host or obstacle_to_triton(device) is not None:
        return None
    if deterministic and max_tokens > most_rows(parallel.world_size):
        return None
    memory = open_peer_memory(parallel, max_tokens, hidden, dtype, device)
    if memory is None:
        return None
    from gpu_worker.kernels.triton_jit import can_overlap, multiprocessors  # noqa: PLC0415
    from gpu_worker.kernels.triton_sum_norm import PeerSum  # noqa: PLC0415

    return PeerSum(memory, can_overlap(device), multiprocessors(device))


@contextmanager
def compiling_kernels(
    device: torch.device,
    config: ModelConfig,
    parallel: ParallelGroup,
    dtype: torch.dtype,
    block_size: int,
    *,
    deterministic: bool,
) -> Iterator[None]:
    """Compile what a model needs of Triton's kernels, if they can run, while the body does something else."""
    if obstacle_to_triton(device) is not None:
        yield
        return
    from gpu_worker.kernels.triton_jit import use_device  # noqa: PLC0415
    from gpu_worker.kernels.triton_warm_up import KernelShapes, compile_kernels  # noqa: PLC0415

    with ThreadPoolExecutor(1, "compile", initializer=use_device, initargs=(device,)) as pool:
        shapes = KernelShapes.of_rank(config, parallel, dtype, block_size, deterministic=deterministic)
        compiling = pool.submit(compile_kernels, shapes, device)
        yield
        compiling.result()
