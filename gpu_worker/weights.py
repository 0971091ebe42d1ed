"""How does a path become a model that computes?"""

import ctypes
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.formats.dummy import DummySource
from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.gguf import GgufSource
from gpu_worker.formats.safetensors import SafetensorsSource
from gpu_worker.formats.source import ProgressSource, TensorSource
from gpu_worker.kernels.interface import Kernels
from gpu_worker.layers.context import LayerContext
from gpu_worker.models.config import ModelConfig
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.models.gguf_config import read_gguf_config
from gpu_worker.models.hf_config import read_hf_config
from gpu_worker.models.registry import find_family
from gpu_worker.parallel import ParallelGroup
from gpu_worker.quantization.select import select_linear_method

if TYPE_CHECKING:
    from gpu_worker.kernels.triton_sum_norm import PeerSum

logger = logging.getLogger(__name__)


def read_config(path: Path, max_model_len: int | None = None) -> ModelConfig:
    """The shape of the model in a GGUF file or in a Hugging Face directory.

    Args:
        max_model_len: positions to serve, None for all that the model has.

    Raises:
        ModelLoadError: there is none, it is damaged, its architecture is not served, or it has fewer positions.
    """
    if path.is_dir():
        config = read_hf_config(path)
    elif path.is_file():
        config = read_gguf_config(path)
    else:
        raise ModelLoadError(f"{path} does not exist; give a GGUF file or a Hugging Face model directory")
    if max_model_len is None:
        return config
    if not 1 <= max_model_len <= config.max_model_len:
        raise ModelLoadError(
            f"a max model length of {max_model_len} is asked; this model has 1 to {config.max_model_len}"
        )
    return dataclasses.replace(config, max_model_len=max_model_len)


def load_model(
    path: Path,
    config: ModelConfig,
    *,
    kernels: Kernels,
    attention: AttentionBackend,
    parallel: ParallelGroup,
    device: torch.device,
    dtype: torch.dtype,
    load_format: str,
    on_progress: Callable[[int, int], None],
    native: ctypes.CDLL | None = None,
    peer_sum: "PeerSum | None" = None,
    deterministic: bool = False,
) -> DecoderModel:
    """Load this rank's part of a model, tensor by tensor: memory peaks at the model and one tensor.

    Args:
        dtype: of the weights; on a CPU activations are float32 whatever it is.
        config: what `read_config` says of the path.
        load_format: "auto" reads the checkpoint, "dummy" makes random weights of the same shape.
        on_progress: called with bytes done and bytes in all.
        native: the C kernels for a CPU, None where there are none.
        peer_sum: how ranks sum rows, None where they do so by collective calls alone.
        deterministic: compute the same of a token whatever its batch is.

    Raises:
        ModelLoadError: see its message.
    """
    started = time.monotonic()
    method = select_linear_method(device, dtype, native, deterministic=deterministic)
    source = ProgressSource(_open(path, config, load_format, device, method.weight_dtype), on_progress)
    context = LayerContext(source, kernels, attention, parallel, method, device, peer_sum, deterministic)
    with torch.inference_mode():
        model = DecoderModel(config, context)
    source.finish()
    logger.info(
        "model loaded path=%s architecture=%s method=%s rank=%d seconds=%.1f",
        path,
        config.architecture,
        type(method).__name__,
        parallel.rank,
        time.monotonic() - started,
    )
    return model


def _open(path: Path, config: ModelConfig, load_format: str, device: torch.device, dtype: torch.dtype) -> TensorSource:
    if load_format == "dummy":
        return DummySource(device, dtype)
    if load_format != "auto":
        raise ModelLoadError(f"load format {load_format!r} is not known; known: auto, dummy")
    if path.is_dir():
        return SafetensorsSource(path)
    interleaved = find_family([config.architecture]).gguf_interleaved
    return GgufSource(path, config.head_dim if interleaved else None)
