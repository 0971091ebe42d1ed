"""What does a GGUF file's metadata say about the model's shape?"""

from pathlib import Path
from typing import TypeVar

import torch

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.gguf import GgufSource
from gpu_worker.formats.gguf_header import GgufHeader, Scalar, read_header
from gpu_worker.models.config import (
    FrequencyDivisors,
    LinearScaling,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from gpu_worker.models.registry import find_gguf_family

_DEFAULT_THETA = 10000.0
_ROPE_DIVISORS = "rope_freqs.weight"
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

T = TypeVar("T", int, float, str)


def read_gguf_config(path: Path) -> ModelConfig:
    """Read a GGUF file's metadata.

    Raises:
        ModelLoadError: the file is damaged, or the model is of a kind that is not served.
    """
    header = read_header(path)
    family = find_gguf_family(str(header.metadata.get("general.architecture", "(none named)")))
    values = _Values(path, str(family.gguf), header.metadata)
    if values.get("expert_count", 0):
        raise ModelLoadError(f"{path}: mixture-of-experts models are not supported")
    num_heads = values.need("attention.head_count", int)
    num_layers = values.need("block_count", int)
    hidden_size = values.need("embedding_length", int)
    head_dim = values.get("attention.key_length", hidden_size // max(num_heads, 1))
    window = values.get("attention.sliding_window", 0) if family.windowed else 0
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=_vocab_size(path, header),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        intermediate_size=values.need("feed_forward_length", int),
        rms_eps=values.need("attention.layer_norm_rms_epsilon", float),
        rope=_read_rope(path, values, header, head_dim),
        max_model_len=values.need("context_length", int),
        eos_token_ids=_read_eos(header.metadata),
        tie_embeddings="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        qk_norm=family.qk_norm,
        sliding_window=(window or None,) * num_layers,
    )


class _Values:
    """Metadata under one architecture's prefix; errors name the file and the key."""

    def __init__(self, path: Path, prefix: str, metadata: dict[str, Scalar]) -> None:
        self._path = path
        self._prefix = prefix
        self._metadata = metadata

    def need(self, key: str, kind: type[T]) -> T:
        full_key = f"{self._prefix}.{key}"
        value = self._metadata.get(full_key)
        if not isinstance(value, kind):
            raise ModelLoadError(f"{self._path}: metadata {full_key} is {value!r}, one {kind.__name__} is needed")
        return value

    def get(self, key: str, default: T) -> T:
        if f"{self._prefix}.{key}" not in self._metadata:
            return default
        return self.need(key, type(default))


def _vocab_size(path: Path, header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelLoadError(f"{path}: tensor token_embd.weight is missing or no matrix: download the file again")
    return embedding.shape[0]


def _read_rope(path: Path, values: _Values, header: GgufHeader, head_dim: int) -> RopeConfig:
    rotary_dim = values.get("rope.dimension_count", head_dim)
    return RopeConfig(values.get("rope.freq_base", _DEFAULT_THETA), rotary_dim, _read_scaling(path, values, header))


def _read_scaling(path: Path, values: _Values, header: GgufHeader) -> RopeScaling | None:
    if _ROPE_DIVISORS in header.tensors:
        shape = header.tensors[_ROPE_DIVISORS].shape
        divisors: torch.Tensor = GgufSource(path, None).read(_ROPE_DIVISORS, shape)
        return FrequencyDivisors(tuple(divisors.tolist()))
    kind = values.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = values.need("rope.scaling.factor", float)
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "yarn":
        return YarnScaling(factor, values.need("rope.scaling.original_context_length", int))
    raise ModelLoadError(f"{path}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn")


def _read_eos(metadata: dict[str, Scalar]) -> tuple[int, ...]:
    ids = [metadata.get(f"tokenizer.ggml.{key}") for key in _EOS_KEYS]
    return tuple(dict.fromkeys(int(value) for value in ids if isinstance(value, int)))
