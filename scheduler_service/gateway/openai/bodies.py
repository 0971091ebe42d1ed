"""What may a request's body hold? Only what is served; `parsing.py` says what is said of the rest.

A parameter that is null counts as left out, so none has None as a value that means something. Ranges that
pagewire.v1 states too are checked where its requests are; here are types, and what the wire types cannot hold.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

Prompt = str | list[int]
Count = Annotated[int, Field(ge=0, lt=2**32)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]

# Of one prompt, and of all prompts together.
_MAX_CHOICES = 128
_MAX_ALL_CHOICES = 1024
_MAX_TOP_LOGPROBS = 20
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> list[Prompt]:
    """One text, one list of token ids, or a list of either."""
    values = [value] if isinstance(value, str) or _is_token_ids(value) else value
    if not isinstance(values, list) or not all(isinstance(one, str) or _is_token_ids(one) for one in values):
        raise ValueError("must be a text, a list of token ids, or a list of texts or of lists of token ids")
    if not 1 <= len(values) <= _MAX_ALL_CHOICES:
        raise ValueError(f"has {len(values)} prompts, must have 1 to {_MAX_ALL_CHOICES}")
    return values


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**32 for one in value)


def _content(value: Any) -> str:
    """A text, or text parts, which are joined by line ends."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise ValueError("must be a text or a list of text parts")
    for part in value:
        if part.get("type") != "text":
            raise ValueError(f"has a part of type {part.get('type')!r}: only text is served")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("has a text part that is not {type, text} with a text")
    return "\n".join(part["text"] for part in value)


def _role(value: Any) -> str:
    if value in ("tool", "function"):
        raise ValueError(f"{value!r} is not served yet")
    if not isinstance(value, str) or value not in _ROLES:
        raise ValueError(f"must be one of {', '.join(_ROLES)}")
    return _ROLES[value]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class Message(_Strict):
    """One turn of a conversation. The developer's turns are the system's."""

    role: Annotated[str, BeforeValidator(_role)]
    content: Annotated[str, PlainValidator(_content)]
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        """An answer's message may be sent back as it came, with nulls and empty lists."""
        if not isinstance(value, dict):
            return value
        return {name: one for name, one in value.items() if one is not None and (one != [] or name == "content")}


class GenerationBody(_Strict):
    """What completions and chat completions have in common."""

    model: str = ""
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] = 1
    temperature: float | None = None
    top_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[str], BeforeValidator(_texts)] = []
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    # These change nothing: they are for OpenAI's own abuse detection and caches.
    user: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    # vLLM's.
    top_k: Annotated[int, Field(ge=-1, lt=2**32)] = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    min_tokens: Count = 0
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    bad_words: list[str] = []
    allowed_token_ids: list[TokenId] = []
    truncate_prompt_tokens: Count | None = None
    priority: Annotated[int, Field(ge=-(2**31) + 1, lt=2**31)] = 0
    cache_salt: str = ""
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is for streams: set stream, too")
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    max_tokens: Count | None = 16
    echo: bool = False
    prompt_logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_prompt_is_told_whole(self) -> "CompletionBody":
        for name, is_wanted in (("echo", self.echo), ("prompt_logprobs", self.prompt_logprobs is not None)):
            if is_wanted and self.stream:
                raise ValueError(f"{name}: is not served in streams yet: leave it or stream out")
        return self

    @model_validator(mode="after")
    def _check_num_choices(self) -> "CompletionBody":
        if len(self.prompt) * self.n > _MAX_ALL_CHOICES:
            raise ValueError(f"n: is {self.n} for {len(self.prompt)} prompts, more than {_MAX_ALL_CHOICES} together")
        return self


class ChatCompletionBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: Count | None = None
    chat_template: str = ""
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    # The template writes all special tokens.
    add_special_tokens: Literal[False] = False

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatCompletionBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens: leave it out")
        return self
