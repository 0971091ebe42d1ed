"""What does the decoder compute that all families share?

    residual = embedding
    per layer:  x = norm(residual);  residual += attention(x);  x = norm(residual);  residual += mlp(x)
    hidden   = norm(residual);       logits = head(hidden)

Each addition is fused with the norm that follows it, and with the sum over the ranks before it: a layer hands on its
rank's part of x, not yet summed and added, and who comes next does both.
"""

from collections.abc import Sequence

import torch

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams
from gpu_worker.layers.context import LayerContext
from gpu_worker.layers.embedding import load_embedding_and_head
from gpu_worker.layers.linear import ColumnParallelLinear, Matrix, RowParallelLinear
from gpu_worker.layers.rope import cos_sin_table
from gpu_worker.layers.sum_and_norm import SumAndNorm
from gpu_worker.models.config import ModelConfig
from gpu_worker.parallel import HeadSplit, VocabPart, check_split, split, split_heads


class DecoderModel:
    """This rank's part of a decoder-only model.

    Attributes:
        config: the whole model's.
        num_kv_heads: this rank's.
        dtype: of activations and of what is written to the KV cache.
        attention: the backend of all layers.
        vocab: which of it is this rank's.
    """

    def __init__(self, config: ModelConfig, context: LayerContext) -> None:
        """Load every layer's weights, one after the other.

        Raises:
            ModelLoadError: the checkpoint does not fit the configuration.
        """
        parallel = context.parallel
        check_split(config, parallel.world_size)
        heads = split_heads(config.num_heads, config.num_kv_heads, parallel.rank, parallel.world_size)
        cos_sin = cos_sin_table(config.rope, config.max_model_len, context.device)
        self.config = config
        self.num_kv_heads = len(heads.kv)
        self.dtype = context.method.compute_dtype
        self.attention = context.attention
        self.vocab = VocabPart(parallel, config.vocab_size)
        self._kernels = context.kernels
        self._embedding, self._head = load_embedding_and_head(
            context, config.vocab_size, config.hidden_size, config.tie_embeddings
        )
        self._layers = [DecoderLayer(config, context, heads, cos_sin, index) for index in range(config.num_layers)]
        self._norm = context.read_vector("model.norm.weight", config.hidden_size)
        self._add_mlp = SumAndNorm(context, config.rms_eps, slot=1)
        # The norm that follows each layer: the next layer's first, or the last of all.
        self._next_norms = [layer.input_norm for layer in self._layers[1:]] + [self._norm]

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_caches: Sequence[torch.Tensor],
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """Run all layers over a step batch and write its keys and values to the caches.

        Args:
            input_ids, positions: [num_tokens] int64.
            kv_caches: per layer, [2, num_blocks, block_size, num_kv_heads, head_dim].

        Returns:
            [num_tokens, hidden] after the last norm.
        """
        self.attention.prepare(metadata)
        residual = self._embedding(input_ids)
        x = self._kernels.rms_norm(residual, self._layers[0].input_norm, self.config.rms_eps)
        for layer, kv_cache, next_norm in zip(self._layers, kv_caches, self._next_norms, strict=True):
            x = layer.forward(x, residual, positions, kv_cache, metadata)
            x = self._add_mlp(x, residual, next_norm)
        return x

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_sampled, hidden] -> [num_sampled, this rank's token ids] float32."""
        return self._head(hidden)


class DecoderLayer:
    """Attention and MLP of one layer, and the norms before them."""

    def __init__(
        self, config: ModelConfig, context: LayerContext, heads: HeadSplit, cos_sin: torch.Tensor, index: int
    ) -> None:
        prefix = f"model.layers.{index}"
        self.input_norm = context.read_vector(f"{prefix}.input_layernorm.weight", config.hidden_size)
        self._attention = Attention(config, context, heads, cos_sin, index)
        self._add_attention = SumAndNorm(context, config.rms_eps, slot=0)
        self._mlp_norm = context.read_vector(f"{prefix}.post_attention_layernorm.weight", config.hidden_size)
        self._mlp = Mlp(config, context, f"{prefix}.mlp")

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        positions: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """x is the normed residual; returns this rank's part of what is to be added to it. All [num_tokens, hidden]."""
        x = self._attention.forward(x, positions, kv_cache, metadata)
        x = self._add_attention(x, residual, self._mlp_norm)
        return self._mlp.forward(x)


class Attention:
    """Projections around paged attention, with this rank's heads."""

    def __init__(
        self, config: ModelConfig, context: LayerContext, heads: HeadSplit, cos_sin: torch.Tensor, index: int
    ) -> None:
        prefix = f"model.layers.{index}.self_attn"
        size = config.head_dim
        self._eps = config.rms_eps
        self._kernels = context.kernels
        self._backend = context.attention
        self._params = AttentionParams(scale=size**-0.5, sliding_window=config.sliding_window[index])
        self._cos_sin = cos_sin
        self._qkv = ColumnParallelLinear(
            context,
            (
                Matrix(f"{prefix}.q_proj", config.num_heads * size, _rows_of(heads.query, size)),
                Matrix(f"{prefix}.k_proj", config.num_kv_heads * size, _rows_of(heads.kv, size)),
                Matrix(f"{prefix}.v_proj", config.num_kv_heads * size, _rows_of(heads.kv, size)),
            ),
            config.hidden_size,
            config.qkv_bias,
        )
        self._q_norm = context.read_vector(f"{prefix}.q_norm.weight", size) if config.qk_norm else None
        self._k_norm = context.read_vector(f"{prefix}.k_norm.weight", size) if config.qk_norm else None
        self._output = RowParallelLinear(
            context,
            f"{prefix}.o_proj",
            config.hidden_size,
            config.num_heads * size,
            _rows_of(heads.query, size),
            config.o_bias,
        )

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata
    ) -> torch.Tensor:
        """[num_tokens, hidden] -> this rank's part of [num_tokens, hidden]."""
        query = self._kernels.rope_and_cache(
            self._qkv(x),
            positions,
            self._cos_sin,
            kv_cache,
            metadata.slot_mapping,
            self._q_norm,
            self._k_norm,
            self._eps,
        )
        return self._output(self._backend.forward(query, kv_cache, metadata, self._params))


class Mlp:
    """The gated feed-forward layer: down(silu(gate(x)) * up(x)). Source: Shazeer, GLU Variants, section 2."""

    def __init__(self, config: ModelConfig, context: LayerContext, prefix: str) -> None:
        size = config.intermediate_size
        part = split(size, context.parallel.rank, context.parallel.world_size)
        gate_up = (Matrix(f"{prefix}.gate_proj", size, part), Matrix(f"{prefix}.up_proj", size, part))
        self._kernels = context.kernels
        self._gate_up = ColumnParallelLinear(context, gate_up, config.hidden_size, config.mlp_bias)
        self._down = RowParallelLinear(context, f"{prefix}.down_proj", config.hidden_size, size, part, config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] -> this rank's part of [num_tokens, hidden]."""
        return self._down(self._kernels.silu_mul(self._gate_up(x)))


def _rows_of(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
