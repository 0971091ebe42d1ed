"""What shape does a model have?"""

from dataclasses import dataclass

from gpu_worker.formats.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions are divided by `factor`. Source: Chen et al., Position Interpolation, section 3.2."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones kept. Source: The Llama 3 Herd of Models, section 3.4.2,
    and the constants published with Llama 3.1."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Source: Peng et al., YaRN, sections 3.2 to 3.4. `attention_factor` None: 0.1 ln(factor) + 1."""

    factor: float
    original_max_len: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class FrequencyDivisors:
    """Each frequency is divided by its own number (GGUF files carry llama3 scaling in this form)."""

    divisors: tuple[float, ...]


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FrequencyDivisors


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the first `rotary_dim` elements of a head are rotated."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape and everything its family does differently. Sizes are the whole model's, not a rank's.

    `sliding_window` has one entry per layer, None for full attention. `qkv_bias`, `o_bias` and `mlp_bias` say which
    linear layers add a bias; `qk_norm` normalises every query and key head.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_eps: float
    rope: RopeConfig
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Raises ModelLoadError naming the first value that makes no sense."""
        for field in _POSITIVE:
            if getattr(self, field) < 1:
                raise ModelLoadError(f"model configuration: {field} is {getattr(self, field)}, must be at least 1")
        if self.num_heads % self.num_kv_heads != 0:
            raise ModelLoadError(
                f"model configuration: {self.num_heads} query heads are no multiple of {self.num_kv_heads} KV heads"
            )
        if self.rms_eps <= 0 or self.rope.theta <= 0:
            raise ModelLoadError("model configuration: the RMS epsilon and the RoPE base must be positive")
        if self.rope.rotary_dim % 2 != 0 or not 0 < self.rope.rotary_dim <= self.head_dim:
            raise ModelLoadError(
                f"model configuration: {self.rope.rotary_dim} rotated elements in heads of {self.head_dim}"
            )
        if len(self.sliding_window) != self.num_layers or any(w is not None and w < 1 for w in self.sliding_window):
            raise ModelLoadError(
                f"model configuration: sliding windows {self.sliding_window} of {self.num_layers} layers"
            )


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_model_len",
)
