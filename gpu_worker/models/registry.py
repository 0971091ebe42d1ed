"""Which model families are served, and in what do they differ?"""

from dataclasses import dataclass

from gpu_worker.formats.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Family:
    """What the configuration of a family's models does not say.

    Attributes:
        architecture: the name in a Hugging Face config.json.
        gguf: the name in GGUF metadata; None where GGUF has none of its own.
        qkv_bias, o_bias, mlp_bias: whether these linear layers add a bias; a string names the configuration key.
        qk_norm: whether query and key heads are normalised.
        windowed: whether the configuration may ask for a sliding window.
        window_switch: whether it does so only if `use_sliding_window` is set, for the layers from `max_window_layers`.
        gguf_interleaved: whether GGUF stores query and key rows in RoPE's interleaved order.
    """

    architecture: str
    gguf: str | None
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windowed: bool = False
    window_switch: bool = False
    gguf_interleaved: bool = False


FAMILIES = (
    Family(
        "LlamaForCausalLM",
        gguf="llama",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        gguf_interleaved=True,
    ),
    Family("MistralForCausalLM", gguf=None, windowed=True),
    Family("Qwen2ForCausalLM", gguf="qwen2", qkv_bias=True, windowed=True, window_switch=True),
    Family(
        "Qwen3ForCausalLM",
        gguf="qwen3",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        windowed=True,
        window_switch=True,
    ),
)


def find_family(architectures: list[str]) -> Family:
    """The family of a config.json's `architectures`.

    Raises:
        ModelLoadError: none of them is served.
    """
    for family in FAMILIES:
        if family.architecture in architectures:
            return family
    raise _unsupported(", ".join(architectures) or "(none named)", [family.architecture for family in FAMILIES])


def find_gguf_family(architecture: str) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
        ModelLoadError: it is not served.
    """
    for family in FAMILIES:
        if family.gguf == architecture:
            return family
    raise _unsupported(architecture, [family.gguf for family in FAMILIES if family.gguf is not None])


def _unsupported(found: str, supported: list[str]) -> ModelLoadError:
    return ModelLoadError(f"architecture {found} is not supported; supported: {', '.join(supported)}")
