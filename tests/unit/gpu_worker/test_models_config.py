"""Configurations as models publish them, in both spellings, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig, YarnScaling
from gpu_worker.models.registry import FAMILIES
from gpu_worker.weights import read_config

LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_0_5B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def read(directory: Path, entries: dict[str, Any], **changes: Any) -> ModelConfig:
    """Read a config.json of these entries; a change to None removes the key."""
    merged = {key: value for key, value in {**entries, **changes}.items() if key not in changes or value is not None}
    (directory / "config.json").write_text(json.dumps(merged))
    return read_config(directory)


def test_llama_3_2(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA_3_2_1B)
    assert config.rope == RopeConfig(500000.0, 64, Llama3Scaling(32.0, 1.0, 4.0, 8192))
    assert config.max_model_len == 131072
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.tie_embeddings
    assert not any((config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm))


def test_qwen3(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN3_0_6B)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (16, 8, 128)
    assert config.qk_norm
    assert not config.qkv_bias
    assert config.rope == RopeConfig(1e6, 128)
    assert config.sliding_window == (None,) * 28


def test_qwen2(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN2_0_5B)
    assert config.head_dim == 64
    assert config.qkv_bias
    assert not config.o_bias
    assert config.sliding_window == (None,) * 24
    windowed = read(tmp_path, QWEN2_0_5B, use_sliding_window=True)
    assert windowed.sliding_window == (None,) * 21 + (32768,) * 3


def test_mistral(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL_7B).sliding_window == (4096,) * 32
    assert read(tmp_path, MISTRAL_7B, sliding_window=None).sliding_window == (None,) * 32


@pytest.mark.parametrize("entries", [LLAMA_3_2_1B, QWEN3_0_6B, QWEN2_0_5B, MISTRAL_7B])
def test_new_spelling_means_the_same(entries: dict[str, Any], tmp_path: Path) -> None:
    old = read(tmp_path, entries)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    rewritten = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in rewritten
    assert "rope_theta" not in rewritten
    assert read_config(tmp_path) == old


def test_yarn_extends_the_model(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = read(tmp_path, QWEN3_0_6B, rope_scaling=yarn)
    assert config.rope.scaling == YarnScaling(4.0, 32768)
    assert config.max_model_len == 131072


def test_old_linear_scaling_key(tmp_path: Path) -> None:
    config = read(tmp_path, MISTRAL_7B, rope_scaling={"type": "linear", "factor": 2})
    assert config.rope.scaling == LinearScaling(2.0)
    assert config.max_model_len == 32768


def test_absent_keys_have_defaults(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        LLAMA_3_2_1B,
        **dict.fromkeys(["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling"]),
        tie_word_embeddings=None,
    )
    assert (config.head_dim, config.num_kv_heads, config.rms_eps) == (64, 32, 1e-6)
    assert config.rope == RopeConfig(10000.0, 64)
    assert not config.tie_embeddings


def test_partial_rotation(tmp_path: Path) -> None:
    assert read(tmp_path, QWEN3_0_6B, partial_rotary_factor=0.5).rope.rotary_dim == 64


def test_eos_ids_of_both_files_are_merged(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151643, 151645]}')
    assert read(tmp_path, QWEN3_0_6B).eos_token_ids == (151643, 151645)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert read(tmp_path, QWEN3_0_6B).eos_token_ids == (7, 151645)
    assert read(tmp_path, QWEN3_0_6B, eos_token_id=None).eos_token_ids == (7,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM, Mis"),
        ({"architectures": None}, r"architecture \(none named\) is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized checkpoints are not served"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"hidden_size": None}, "hidden_size is None, a whole number is needed"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny', a number is needed"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "RoPE scaling 'linear' lacks a proper"),
        ({"num_hidden_layers": 0}, "num_layers is 0, must be at least 1"),
        ({"num_key_value_heads": 3}, "32 query heads are no multiple of 3 KV heads"),
        ({"head_dim": 5}, "5 rotated elements in heads of 5"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "RoPE scaling 'longrope' is not supported; supported: default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE scaling 'linear' lacks a proper 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "'yarn' with mscale is not supported"),
    ],
)
def test_unserved_configurations_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message):
        read(tmp_path, LLAMA_3_2_1B, **changes)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_config_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config.json"):
        read_config(tmp_path)


def test_missing_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist; give a GGUF file or a Hugging Face model directory"):
        read_config(tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match=r"holds no config.json; give a GGUF file or"):
        read_config(tmp_path)


def test_families_are_declared_once() -> None:
    assert len({family.architecture for family in FAMILIES}) == len(FAMILIES)
    named = [family.gguf for family in FAMILIES if family.gguf is not None]
    assert len(set(named)) == len(named)
