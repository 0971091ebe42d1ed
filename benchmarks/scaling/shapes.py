"""What does a step of a model move and compute? Bytes and FLOPs, counted from the model's shape."""

from dataclasses import dataclass

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated MLP, in bfloat16."""

    name: str
    hidden: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    num_embeddings: int
    """Matrices of the vocabulary: 1 if input and output share one."""

    @property
    def layer_params(self) -> int:
        """Parameters of the matrix products of all layers."""
        attention = self.hidden * self.head_dim * (2 * self.num_query_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def step_weight_bytes(self) -> int:
        """Weights that every step reads: the layers and the head."""
        return _BF16_BYTES * (self.layer_params + self.hidden * self.vocab_size)

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return _BF16_BYTES * (self.layer_params + self.num_embeddings * self.hidden * self.vocab_size)

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value of one token in all layers."""
        return _BF16_BYTES * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def activation_bytes_per_token(self) -> int:
        """What norms, RoPE, the cache's writes and SiLU read and write of one token in all layers."""
        heads = self.num_query_heads + 2 * self.num_kv_heads
        return _BF16_BYTES * self.num_layers * (8 * self.hidden + 3 * self.intermediate + 2 * heads * self.head_dim)

    def flops(self, num_tokens: int, num_sampled: int, num_attended: float) -> float:
        """Of the products and of the prompts' attention: `num_attended` pairs of a prompt's token and one before it."""
        products = 2.0 * (num_tokens * self.layer_params + num_sampled * self.hidden * self.vocab_size)
        return products + 4.0 * num_attended * self.num_layers * self.num_query_heads * self.head_dim

    def num_kv_blocks(self, memory_bytes: float, block_size: int) -> int:
        """KV blocks in what the weights leave of the memory."""
        return int((memory_bytes - self.weight_bytes) // (self.kv_bytes_per_token * block_size))


QWEN3_0_6B = ModelShape("Qwen3-0.6B", 1024, 28, 16, 8, 128, 3072, 151_936, 1)
QWEN3_8B = ModelShape("Qwen3-8B", 4096, 36, 32, 8, 128, 12_288, 151_936, 2)
SHAPES = {"0.6b": QWEN3_0_6B, "8b": QWEN3_8B}
