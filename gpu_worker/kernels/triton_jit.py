"""How are Triton kernels declared and launched, with types that hold and overlapping launches where the GPU can?

Importing this module needs triton. Kernels declared here run on the CPU when TRITON_INTERPRET=1 was set before.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Programmatic dependent launch came with Hopper.
_OVERLAP_CAPABILITY = (9, 0)
_ELEMENTS_PER_WARP = 256
_MAX_WARPS = 16


class Kernel(Protocol):
    """A Triton kernel: kernel[grid](*args, **constants) enqueues it on the current stream."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """Bind a grid of programs."""
        ...


def kernel(*varying: str) -> Callable[[Callable[..., None]], Kernel]:
    """Declare a kernel. `varying` names integers of any value: one compiled version serves them all."""

    def declare(function: Callable[..., None]) -> Kernel:
        return cast(Kernel, triton.jit(do_not_specialize=varying, do_not_specialize_on_alignment=varying)(function))

    return declare


def device_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare a function that kernels call."""
    return cast(Callable[..., Any], triton.jit(function))


@device_function
def wait_for_inputs(overlap: tl.constexpr) -> None:
    """Let the next kernel be launched, and wait until the ones before are done and their writes are seen.

    With `overlap` a kernel starts while the one before it still runs, so it may touch nothing but constants (weights)
    before this call. Every program must make it, also one that has nothing to do: kernels two apart are ordered only
    by the one between them. Source: CUDA Programming Guide, "Programmatic Dependent Launch".
    """
    launch_next(overlap)
    if overlap:
        gdc_wait()


@device_function
def launch_next(overlap: tl.constexpr) -> None:
    """Let the next kernel be launched, for a kernel that does something before it waits for its own inputs."""
    if overlap:
        gdc_launch_dependents()


@device_function
def prefetch_lines(line_ptrs: tl.tensor, overlap: tl.constexpr) -> None:
    """Have the cache line of each pointer brought into the L2 cache; nothing waits for them."""
    if overlap:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [line_ptrs.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def can_overlap(device: torch.device) -> bool:
    """Whether kernels may be launched before their predecessors end on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OVERLAP_CAPABILITY


def multiprocessors(device: torch.device) -> int:
    """How many there are. A CPU interprets the kernels: any number will do."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def shared_bytes(device: torch.device) -> int:
    """Shared memory of a multiprocessor; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor)


def use_device(device: torch.device) -> None:
    """Have this thread's launches go to one of several GPUs; a new thread's go to the first."""
    if device.index is not None:
        torch.cuda.set_device(device)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()


def row_shape(size: int) -> tuple[int, int]:
    """Elements and warps of a program that has a whole row."""
    block = next_power_of_2(size)
    return block, min(max(block // _ELEMENTS_PER_WARP, 1), _MAX_WARPS)


def check_contiguous(*tensors: torch.Tensor) -> None:
    """Our callers hand over contiguous tensors; a kernel would misread others."""
    assert all(tensor.is_contiguous() for tensor in tensors)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for a dtype."""
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


def shared_dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype that all tensors have."""
    (dtype,) = {tensor.dtype for tensor in tensors}
    return dtype
