"""A tiny random Llama checkpoint whose heads the C attention kernels can do, and what transformers makes of it."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel

from tests.unit.gpu_worker.model_harness import random_model

VOCAB = 101
MAX_MODEL_LEN = 128


def write_checkpoint(folder: Path, change: Callable[[PreTrainedModel], None] = lambda model: None) -> PreTrainedModel:
    """Save a checkpoint, after `change`; returns the model."""
    model = random_model(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=MAX_MODEL_LEN,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        )
    )
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    return model


def complete_greedily(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """The most likely continuation, by transformers without a cache."""
    token_ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            token_ids.append(int(model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].argmax()))
    return token_ids[len(prompt) :]
