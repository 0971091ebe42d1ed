"""Rotation angles against transformers' for each kind of scaling, at every position."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gpu_worker.layers.rope import cos_sin_table
from gpu_worker.models.config import (
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

NUM_POSITIONS = 4096
KINDS: dict[str, tuple[RopeScaling | None, dict[str, object]]] = {
    "default": (None, {}),
    "linear": (LinearScaling(3.0), {"factor": 3.0}),
    "llama3": (
        Llama3Scaling(8.0, 1.0, 4.0, 512),
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512},
    ),
    "yarn": (YarnScaling(4.0, 1024), {"factor": 4.0, "original_max_position_embeddings": 1024}),
    "yarn-options": (
        YarnScaling(4.0, 1024, attention_factor=1.3, beta_fast=20.0, beta_slow=2.0, truncate=False),
        {
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "attention_factor": 1.3,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_table_equals_transformers(name: str, theta: float) -> None:
    scaling, parameters = KINDS[name]
    kind = {"rope_type": name.split("-")[0], "rope_theta": theta, **parameters}
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=NUM_POSITIONS, rope_parameters=kind
    )
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(NUM_POSITIONS)[None])
    table = cos_sin_table(RopeConfig(theta, 64, scaling), NUM_POSITIONS, torch.device("cpu"))
    assert table.shape == (NUM_POSITIONS, 64)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, torch.cat((cos[0, :, :32], sin[0, :, :32]), dim=-1), atol=2e-3, rtol=0)
    early = slice(0, 64)
    torch.testing.assert_close(table[early], torch.cat((cos[0, early, :32], sin[0, early, :32]), -1), atol=2e-5, rtol=0)


def test_divisors_divide_each_frequency() -> None:
    plain = cos_sin_table(RopeConfig(10000.0, 8), 10, torch.device("cpu"))
    divided = cos_sin_table(RopeConfig(10000.0, 8, FrequencyDivisors((1.0, 1.0, 3.0, 9.0))), 10, torch.device("cpu"))
    torch.testing.assert_close(divided[:, :2], plain[:, :2])
    torch.testing.assert_close(divided[9, 2], plain[3, 2])
    torch.testing.assert_close(divided[9, 3], plain[1, 3])
