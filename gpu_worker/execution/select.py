"""Which executor runs a model's steps?"""

import logging

import torch

from gpu_worker.execution.eager import EagerExecutor
from gpu_worker.execution.executor import Executor
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kernels.select import obstacle_to_triton
from gpu_worker.kv_cache import CacheShape
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.step_inputs import SlotShape

logger = logging.getLogger(__name__)


def select_executor(
    model: DecoderModel,
    kernels: Kernels,
    slots: SlotShape,
    cache: CacheShape,
    max_tokens: int,
    enforce_eager: bool,
    device: torch.device,
    trace: bool,
) -> Executor:
    """Steps that never wait for the host where kernels and attention allow it, else operation by operation.

    Args:
        max_tokens: of a step.
        enforce_eager: capture no graphs.
        trace: have a GPU note when it runs each step.
    """
    if not model.attention.reads_device_only or obstacle_to_triton(device) is not None:
        logger.info("executor chosen executor=eager")
        return EagerExecutor(model, kernels, slots, cache, max_tokens, device)
    # They import triton, which need not be installed elsewhere.
    from gpu_worker.execution.captured import CapturedExecutor  # noqa: PLC0415
    from gpu_worker.execution.graphs import GraphSizes  # noqa: PLC0415
    from gpu_worker.kernels.triton_kernels import TritonKernels  # noqa: PLC0415

    assert isinstance(kernels, TritonKernels)
    sizes = None if enforce_eager else GraphSizes.up_to(slots.max_num_seqs, max_tokens)
    logger.info("executor chosen executor=captured graphs=%s", "none" if sizes is None else "all")
    return CapturedExecutor(model, kernels, slots, cache, max_tokens, sizes, device, trace)
