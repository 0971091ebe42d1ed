"""GGUF files are read right, whatever their quantization, and refused clearly where they are damaged."""

import contextlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.gguf import GgufSource, hf_name
from gpu_worker.formats.gguf_header import read_header
from gpu_worker.models.config import FrequencyDivisors, LinearScaling, ModelConfig, YarnScaling
from gpu_worker.weights import read_config
from tests.unit.gpu_worker.model_harness import (
    SIZES,
    PagedRun,
    load,
    random_model,
    random_sequences,
    reference_logits,
    relative_error,
)

GGUF_SIZES: dict[str, Any] = {**SIZES, "hidden_size": 96, "intermediate_size": 128}
"""Rows of whole quantization blocks of 32."""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    quantization: Quantization = Quantization.F32,
    extra: dict[str, str | int | float] | None = None,
    divisors: list[float] | None = None,
) -> None:
    """Write a model as llama.cpp's converter does, matrices quantized, and put the rounded weights into the model."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if "head_dim" in config.to_dict() else config.hidden_size // 6)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(9)
    writer.add_token_list([f"token {index}" for index in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_array("general.languages", ["en"])
    for key, value in (extra or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    names = gguf_names(config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rows = parameter.numpy()
            kind = Quantization.F32 if rows.ndim == 1 else quantization
            stored = gguf.quantize(interleave(name, rows, architecture, config), kind)
            writer.add_tensor(names[name], stored, raw_dtype=kind)
            parameter.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(rows, kind), kind)).reshape(rows.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_names(num_layers: int) -> dict[str, str]:
    """The gguf package's own map, Hugging Face name -> GGUF name."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, num_layers)
    found = {}
    for part in ["model.embed_tokens", "model.norm", "lm_head"] + [
        f"model.layers.{layer}.{part}"
        for layer in range(num_layers)
        for part in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"self_attn.{x}_norm" for x in "qk"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
    ]:
        for kind in ("weight", "bias"):
            found[f"{part}.{kind}"] = f"{names.get_name(part)}.{kind}"
    return found


def interleave(name: str, rows: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    """llama's query and key rows: (half, pair) of each head becomes (pair, half)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, num_heads in heads.items():
        if architecture == "llama" and part in name:
            return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape).copy()
    return rows


@pytest.mark.parametrize(
    "quantization",
    [Quantization.F32, Quantization.F16, Quantization.BF16, Quantization.Q8_0, Quantization.Q4_1, Quantization.Q5_0],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_gguf_matches_transformers(architecture: str, quantization: Quantization, tmp_path: Path) -> None:
    configs = {
        "llama": LlamaConfig(**GGUF_SIZES, attention_bias=True),
        "qwen2": Qwen2Config(**GGUF_SIZES),
        "qwen3": Qwen3Config(**GGUF_SIZES, head_dim=32, tie_word_embeddings=True),
    }
    reference = random_model(configs[architecture])
    path = tmp_path / "model.gguf"
    write_gguf(path, reference, architecture, quantization)
    sequences = random_sequences((30, 7), GGUF_SIZES["vocab_size"])
    run = PagedRun(load(path), sequences)
    run.finish(11)
    for found, wanted in zip(run.logits, reference_logits(reference, sequences), strict=True):
        assert relative_error(found, wanted) < 2e-4


def test_gguf_config_equals_safetensors_config(tmp_path: Path) -> None:
    reference = random_model(Qwen3Config(**{**GGUF_SIZES, "eos_token_id": [2, 9]}, head_dim=32))
    reference.save_pretrained(tmp_path)
    write_gguf(tmp_path / "model.gguf", reference, "qwen3")
    found, expected = read_config(tmp_path / "model.gguf"), read_config(tmp_path)
    assert found.rms_eps == pytest.approx(expected.rms_eps)
    for field in ModelConfig.__dataclass_fields__:
        if field != "rms_eps":
            assert getattr(found, field) == getattr(expected, field)


def test_gguf_rope_scaling(tmp_path: Path) -> None:
    reference = random_model(LlamaConfig(**GGUF_SIZES))
    path = tmp_path / "model.gguf"
    write_gguf(path, reference, "llama", divisors=[1.0] * 7 + [4.0])
    assert read_config(path).rope.scaling == FrequencyDivisors((1.0,) * 7 + (4.0,))
    linear: dict[str, str | int | float] = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    write_gguf(path, reference, "llama", extra=linear)
    assert read_config(path).rope.scaling == LinearScaling(2.0)
    yarn: dict[str, str | int | float] = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }
    write_gguf(path, reference, "llama", extra=yarn)
    assert read_config(path).rope.scaling == YarnScaling(4.0, 64)
    write_gguf(path, reference, "llama", extra={"llama.rope.scaling.type": "longrope"})
    with pytest.raises(ModelLoadError, match=r"rope.scaling.factor"):
        read_config(path)


def test_gguf_parts_are_cut_from_the_whole(tmp_path: Path) -> None:
    reference = random_model(LlamaConfig(**GGUF_SIZES))
    path = tmp_path / "model.gguf"
    write_gguf(path, reference, "llama", Quantization.Q8_0)
    source = GgufSource(path, interleaved_head_dim=16)
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.o_proj.weight"):
        whole = reference.get_parameter(name).detach()
        assert torch.equal(source.read(name, (96, 96)), whole)
        assert torch.equal(source.read(name, (96, 96), rows=range(32, 80)), whole[32:80])
        assert torch.equal(source.read(name, (96, 96), columns=range(5, 40)), whole[:, 5:40])
        assert source.read(name, (96, 96), rows=range(0)).shape == (0, 96)


@pytest.mark.parametrize("quantization", [Quantization.F32, Quantization.F16, Quantization.Q4_1])
def test_gguf_columns_are_read_in_whole_blocks_and_no_more(
    quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = random_model(LlamaConfig(**GGUF_SIZES))
    path = tmp_path / "model.gguf"
    write_gguf(path, reference, "llama", quantization)
    source, name = GgufSource(path, None), "model.layers.2.mlp.down_proj.weight"
    sizes: list[int] = []

    def counting(raw: np.ndarray, kind: Quantization) -> np.ndarray:
        sizes.append(raw.nbytes)
        return gguf.dequantize(raw, kind)

    monkeypatch.setattr("gpu_worker.formats.gguf.dequantize", counting)
    found = source.read(name, (96, 128), rows=range(1, 91), columns=range(40, 70))
    assert torch.equal(found, reference.get_parameter(name)[1:91, 40:70])
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    num_blocks = 2 if block_size == 32 else 30
    assert sizes == [90 * num_blocks * block_bytes]


def test_hf_name_keeps_what_it_does_not_know() -> None:
    assert hf_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert hf_name("blk.12.ffn_gate_exps.weight") == "blk.12.ffn_gate_exps.weight"
    assert hf_name("rope_freqs.weight") == "rope_freqs.weight"


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(LlamaConfig(**GGUF_SIZES)), "llama", extra={"llama.expert_count": 8})
    with pytest.raises(ModelLoadError, match="mixture-of-experts"):
        read_config(path)


def test_parts_of_a_split_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(LlamaConfig(**GGUF_SIZES)), "llama", extra={"split.count": 3})
    with pytest.raises(ModelLoadError, match="split model: join the parts"):
        read_config(path)


def test_unknown_architecture_is_refused_with_those_known(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(LlamaConfig(**GGUF_SIZES)), "mamba")
    with pytest.raises(ModelLoadError, match="architecture mamba is not supported; supported: llama, qwen2, qwen3"):
        read_config(path)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(LlamaConfig(**GGUF_SIZES)), "llama")
    source = GgufSource(path, None)
    with pytest.raises(ModelLoadError, match=r"model.gguf: tensor model.layers.9.mlp.up_proj.weight is missing"):
        source.read("model.layers.9.mlp.up_proj.weight", (1, 1))
    with pytest.raises(ModelLoadError, match=r"tensor lm_head.weight has shape \[101, 96\] but .* says \[7, 96\]"):
        source.read("lm_head.weight", (7, 96))


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, random_model(LlamaConfig(**GGUF_SIZES)), "llama", Quantization.Q8_0)
    return path.read_bytes()


def test_truncated_files_are_refused(small_gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    sizes = [0, 3, 8, 20, 100, 1000, 3000, 8000, len(small_gguf) // 2, len(small_gguf) - 400]
    for size in sizes:
        path.write_bytes(small_gguf[:size])
        with pytest.raises(ModelLoadError, match=r"model.gguf"):
            read_header(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        read_header(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(ModelLoadError, match="GGUF version 1; only little-endian versions 2 and 3"):
        read_header(path)


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_headers_never_raise_anything_else(
    small_gguf: bytes, data: st.DataObject, tmp_path_factory: Any
) -> None:
    header_size = 12_000
    damaged = bytearray(small_gguf)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(4, header_size))
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(ModelLoadError):
        read_header(path)
