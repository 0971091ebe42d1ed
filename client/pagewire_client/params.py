"""Which knobs does a request have? `SamplingParams` under the names that vLLM and nano-vllm users know."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from pagewire_client.checks import (
    MAX_UINT32,
    MAX_UINT64,
    check_biases,
    check_real,
    check_texts,
    check_token_ids,
    check_whole,
)

_UNSIGNED = ("top_k", "seed", "n", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens")
_REAL = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


class RequestOutputKind(enum.Enum):
    """When output comes back. DELTA: as it is made; FINAL_ONLY: all at the end, which costs far less."""

    DELTA = "delta"
    FINAL_ONLY = "final_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Restricts the output to a language; exactly one field is set. `json` and `structural_tag` are JSON text."""

    json: str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        kinds = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"structured outputs need exactly one kind, got {', '.join(kinds) or 'none'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, when to stop, and what comes back. None leaves a field to the server's default.

    temperature     divides the logits; 0 is greedy
    top_k           keeps the k most likely tokens; 0 keeps all
    top_p           keeps the smallest set of tokens whose probability reaches p
    min_p           drops tokens less likely than p times the most likely one
    seed            the same seed and prompt give the same tokens
    n               completions per prompt
    max_tokens      most output tokens; default: what fits the model's length
    logit_bias      added to the logits of single tokens, by token id
    allowed_token_ids, banned_token_ids     which tokens may be produced; default: all
    bad_words       texts that must not appear in the output
    min_tokens      fewest output tokens before a stop condition counts
    stop            text or texts that end the completion and are cut from it
    stop_token_ids  further token ids that end it
    ignore_eos      goes on past the model's end-of-sequence tokens
    include_stop_str_in_output  leaves the stop text in
    logprobs        alternatives with log probabilities per output token; prompt_logprobs: per prompt token
    detokenize      False asks for token ids alone
    output_kind     whether output comes as it is made or all at the end
    echo            repeats the prompt at the head of the output: of its text, not of its token ids
    truncate_prompt_tokens  keeps only the last tokens of the prompt
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] = ()
    banned_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.DELTA
    echo: bool = False
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in _UNSIGNED:
            if (value := getattr(self, name)) is not None:
                check_whole(value, name, MAX_UINT64 if name == "seed" else MAX_UINT32)
        for name in _REAL:
            if (value := getattr(self, name)) is not None:
                check_real(value, name)
        for name in ("allowed_token_ids", "banned_token_ids", "stop_token_ids"):
            check_token_ids(getattr(self, name), name)
        check_texts([self.stop] if isinstance(self.stop, str) else self.stop, "stop")
        check_texts(self.bad_words, "bad_words")
        if self.logit_bias is not None:
            check_biases(self.logit_bias, "logit_bias")


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a stream was cut off: `Accepted` of the original stream and all token ids received from it; with n above 1
    those of each choice, by its index, in `choices` instead. With `prompt_logprobs` or `echo` also how many entries of
    the former and chunks of the latter came."""

    request_id: str
    seed: int
    received_token_ids: Sequence[int] = ()
    choices: Mapping[int, Sequence[int]] = field(default_factory=dict)
    num_received_prompt_logprobs: int = 0
    num_received_echoes: int = 0


class RequestOptions(TypedDict, total=False):
    """Fields of a request beside prompt and sampling. `timeout` is in seconds and covers all retries."""

    model: str
    adapter: str
    priority: int
    cache_salt: str
    request_id: str
    add_special_tokens: bool
    resume: Resume
    timeout: float | None
