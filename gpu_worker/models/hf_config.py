"""What does a Hugging Face model directory say about the model's shape?

Both spellings of the rotary embedding are read: `rope_theta` beside `rope_scaling`, and `rope_parameters`, which
transformers writes since version 5.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig, RopeScaling, YarnScaling
from gpu_worker.models.registry import Family, find_family

_DEFAULT_THETA = 10000.0
_DEFAULT_RMS_EPS = 1e-6
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_SCALING_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "truncate"},
}


def read_hf_config(directory: Path) -> ModelConfig:
    """Read config.json and, where there is one, generation_config.json.

    Raises:
        ModelLoadError: a file is missing or damaged, or the model is of a kind that is not served.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelLoadError(f"{directory} holds no config.json; give a GGUF file or a Hugging Face model directory")
    values = _Values(path, _read_json(path))
    family = find_family(list(values.get("architectures") or []))
    _refuse_unserved(values)
    num_heads = values.integer("num_attention_heads")
    head_dim = values.integer("head_dim", values.integer("hidden_size") // max(num_heads, 1))
    rope, max_model_len = _read_rope(values, head_dim)
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=values.integer("vocab_size"),
        hidden_size=values.integer("hidden_size"),
        num_layers=values.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=values.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        intermediate_size=values.integer("intermediate_size"),
        rms_eps=values.number("rms_norm_eps", _DEFAULT_RMS_EPS),
        rope=rope,
        max_model_len=max_model_len,
        eos_token_ids=_read_eos(directory, values),
        tie_embeddings=bool(values.get("tie_word_embeddings")),
        qkv_bias=values.flag(family.qkv_bias),
        o_bias=values.flag(family.o_bias),
        mlp_bias=values.flag(family.mlp_bias),
        qk_norm=family.qk_norm,
        sliding_window=_read_windows(values, family),
    )


class _Values:
    """The entries of one config.json; errors name the file and the key."""

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        self.path = path
        self._entries = entries

    def get(self, key: str) -> Any:
        return self._entries.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = default if self._entries.get(key) is None else self._entries[key]
        if not isinstance(value, int):
            raise ModelLoadError(f"{self.path}: {key} is {value!r}, a whole number is needed")
        return value

    def number(self, key: str, default: float) -> float:
        value = default if self._entries.get(key) is None else self._entries[key]
        if not isinstance(value, int | float):
            raise ModelLoadError(f"{self.path}: {key} is {value!r}, a number is needed")
        return float(value)

    def flag(self, rule: bool | str) -> bool:
        """A fixed flag, or the value of the named key."""
        return bool(self.get(rule)) if isinstance(rule, str) else rule


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): download the model again") from error
    if not isinstance(entries, dict):
        raise ModelLoadError(f"{path} holds no JSON object: download the model again")
    return entries


def _refuse_unserved(values: _Values) -> None:
    if values.get("quantization_config"):
        raise ModelLoadError(f"{values.path}: quantized checkpoints are not served; use the model's plain weights")
    activation = values.get("hidden_act") or "silu"
    if activation != "silu":
        raise ModelLoadError(f"{values.path}: hidden_act {activation!r} is not supported; supported: silu")


def _read_windows(values: _Values, family: Family) -> tuple[int | None, ...]:
    num_layers = values.integer("num_hidden_layers")
    window = values.integer("sliding_window", 0) if family.windowed else 0
    if not window or (family.window_switch and not values.get("use_sliding_window")):
        return (None,) * num_layers
    if not family.window_switch:
        return (window,) * num_layers
    layer_types = values.get("layer_types")
    if layer_types is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = values.integer("max_window_layers")
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _read_rope(values: _Values, head_dim: int) -> tuple[RopeConfig, int]:
    """The rotary embedding, and how many positions it is meant for."""
    entries = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    kind = str(entries.get("rope_type") or entries.get("type") or "default")
    if kind not in _SCALING_KEYS:
        raise ModelLoadError(
            f"{values.path}: RoPE scaling {kind!r} is not supported; supported: {', '.join(_SCALING_KEYS)}"
        )
    unknown = sorted(set(entries) - _ROPE_KEYS - _SCALING_KEYS[kind])
    if unknown:
        raise ModelLoadError(f"{values.path}: RoPE scaling {kind!r} with {', '.join(unknown)} is not supported")
    max_len = values.integer("max_position_embeddings")
    try:
        theta = float(entries.get("rope_theta") or values.number("rope_theta", _DEFAULT_THETA))
        partial = float(entries.get("partial_rotary_factor") or values.number("partial_rotary_factor", 1.0))
        scaling = _read_scaling(kind, entries, max_len)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{values.path}: RoPE scaling {kind!r} lacks a proper {error}") from error
    if isinstance(scaling, YarnScaling):
        max_len = max(max_len, round(scaling.factor * scaling.original_max_len))
    return RopeConfig(theta, int(head_dim * partial), scaling), max_len


def _read_scaling(kind: str, entries: Mapping[str, Any], max_len: int) -> RopeScaling | None:
    """The scaling of one kind; "dynamic" is none up to max_position_embeddings, and nothing longer is served."""
    original = int(entries.get("original_max_position_embeddings") or max_len)
    if kind == "linear":
        return LinearScaling(float(entries["factor"]))
    if kind == "llama3":
        return Llama3Scaling(
            factor=float(entries["factor"]),
            low_freq_factor=float(entries["low_freq_factor"]),
            high_freq_factor=float(entries["high_freq_factor"]),
            original_max_len=original,
        )
    if kind == "yarn":
        attention_factor = entries.get("attention_factor")
        return YarnScaling(
            factor=float(entries["factor"]),
            original_max_len=original,
            attention_factor=None if attention_factor is None else float(attention_factor),
            beta_fast=float(entries.get("beta_fast") or 32.0),
            beta_slow=float(entries.get("beta_slow") or 1.0),
            truncate=bool(entries.get("truncate", True)),
        )
    return None


def _read_eos(directory: Path, values: _Values) -> tuple[int, ...]:
    """The ids that end a generation: those of generation_config.json first, then the model's own."""
    path = directory / "generation_config.json"
    found = [_read_json(path).get("eos_token_id")] if path.is_file() else []
    found.append(values.get("eos_token_id"))
    ids: list[int] = []
    for entry in found:
        if entry is not None:
            ids.extend(entry if isinstance(entry, list) else [entry])
    return tuple(dict.fromkeys(ids))
