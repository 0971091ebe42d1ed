"""Each family's logits against transformers in float32, over the paged cache, however the work is cut."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from tests.unit.gpu_worker.model_harness import (
    SIZES,
    PagedRun,
    load,
    random_model,
    random_sequences,
    reference_logits,
    relative_error,
)

TOLERANCE = 2e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
WINDOWED = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": LlamaConfig(**SIZES, head_dim=16),
    "llama-linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama-llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama-dynamic": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": MistralConfig(**SIZES, sliding_window=7),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-window": Qwen2Config(**SIZES, **WINDOWED),
    "qwen3": Qwen3Config(**SIZES, head_dim=20),
    "qwen3-tied": Qwen3Config(**SIZES, head_dim=20, tie_word_embeddings=True),
    "qwen3-window": Qwen3Config(**SIZES, head_dim=16, attention_bias=True, **WINDOWED),
    "qwen3-yarn": Qwen3Config(**SIZES, head_dim=16, rope_parameters={**YARN, "rope_theta": 1e6}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_matches_transformers(name: str, tmp_path: Path) -> None:
    reference = random_model(FAMILIES[name])
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    sequences = random_sequences((61, 1, 17, 40), SIZES["vocab_size"])
    expected = reference_logits(reference, sequences)
    for chunk, block_size in ((100, 16), (13, 4), (1, 4)):
        run = PagedRun(model, sequences, block_size=block_size, seed=chunk)
        run.finish(chunk)
        for found, wanted in zip(run.logits, expected, strict=True):
            assert relative_error(found, wanted) < TOLERANCE


def test_mixed_batch_of_decodes_and_chunks_matches_transformers(tmp_path: Path) -> None:
    reference = random_model(FAMILIES["qwen3-window"])
    reference.save_pretrained(tmp_path)
    sequences = random_sequences((33, 29, 12), SIZES["vocab_size"])
    run = PagedRun(load(tmp_path), sequences)
    run.step({0: 20})
    run.step({0: 1, 1: 9})
    run.step({2: 12, 0: 3, 1: 1})
    run.step({1: 19, 0: 1})
    run.finish(1)
    for found, wanted in zip(run.logits, reference_logits(reference, sequences), strict=True):
        assert relative_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("mistral-window", "mistral"),
        ("qwen2-window", "qwen2"),
        ("llama-linear", "llama"),
        ("llama-llama3", "llama"),
        ("llama-yarn", "llama"),
    ],
)
def test_windows_and_rope_scaling_change_the_result(name: str, plain: str) -> None:
    """Guards the tests above: what they vary must be visible in the logits."""
    changed, model = random_model(FAMILIES[name]), random_model(FAMILIES[plain])
    model.load_state_dict(changed.state_dict())
    (ids,) = random_sequences((61,), SIZES["vocab_size"])
    (found,), (expected,) = reference_logits(changed, [ids]), reference_logits(model, [ids])
    assert relative_error(found, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    random_model(FAMILIES["qwen2"]).to(dtype).save_pretrained(tmp_path)
    reference = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    (ids,) = random_sequences((21,), SIZES["vocab_size"])
    run = PagedRun(load(tmp_path), [ids])
    run.finish(8)
    assert relative_error(run.logits[0], reference_logits(reference, [ids])[0]) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2", "llama-tied"])
def test_float16_weights_err_by_their_rounding_only(name: str, tmp_path: Path) -> None:
    reference = random_model(FAMILIES[name])
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.half())
    (ids,) = random_sequences((21,), SIZES["vocab_size"])
    run = PagedRun(load(tmp_path, dtype=torch.float16), [ids])
    run.finish(8)
    assert relative_error(run.logits[0], reference_logits(reference, [ids])[0]) < TOLERANCE
