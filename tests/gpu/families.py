"""Which small random models are tried on a GPU: one of each family that differs in what kernels do."""

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config


def small_families(vocab_size: int, max_position_embeddings: int, num_layers: int) -> dict[str, PreTrainedConfig]:
    """Configurations by family: plain, with norms of queries and keys, and with a sliding window."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "intermediate_size": 416,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_position_embeddings,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return {
        "llama": LlamaConfig(**sizes, head_dim=32),
        "qwen3": Qwen3Config(**sizes, head_dim=64),
        "mistral": MistralConfig(**sizes, head_dim=32, sliding_window=40),
    }
