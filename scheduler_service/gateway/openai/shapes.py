"""What do the answers look like? The objects of completions and of chat completions, whole and in chunks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.openai.bodies import ChatCompletionBody, CompletionBody
from scheduler_service.gateway.openai.logprobs import (
    chat_logprobs,
    completion_logprobs,
    count_chars,
    echo_logprobs,
    prompt_logprobs,
)
from scheduler_service.gateway.openai.position import Position
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]

_REASONS = {generate_pb2.FINISH_REASON_STOP: "stop", generate_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(slots=True)
class Part:
    """Consecutive output of one choice. `num_chars_before`: where it begins in the choice's text.

    The echo is the prompt's text and token ids; log probabilities of the prompt begin with its second token.
    """

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[generate_pb2.TokenLogprobs] = field(default_factory=list)
    num_chars_before: int = 0
    echo_text: str = ""
    echo_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[generate_pb2.TokenLogprobs] = field(default_factory=list)

    def add(self, delta: generate_pb2.Delta) -> None:
        """Take what follows."""
        if delta.prompt_token_ids:
            self.echo_text, self.echo_ids = delta.text, list(delta.prompt_token_ids)
            return
        self.prompt_logprobs += delta.prompt_logprobs
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs


class Shape(ABC):
    """How one kind of answer is written.

    Args:
        body: what was asked for.
        model: name of the model that answers.
        tokenizer: says the texts of single tokens.
    """

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, body: CompletionBody | ChatCompletionBody, model: str, tokenizer: Tokenizer) -> None:
        self._body = body
        self._model = model
        self._tokenizer = tokenizer

    def whole(self, position: Position, choices: Sequence[Json], usage: Json, prompts: Sequence[list[int]]) -> Json:
        """The whole answer. `prompts`: the token ids of each prompt, if they are wanted."""
        return {**self._top(position, self.whole_object, prompts), "choices": choices, "usage": usage}

    def chunk(self, position: Position, choices: Sequence[Json], prompts: Sequence[list[int]] = ()) -> Json:
        """A part of a streamed answer."""
        return {**self._top(position, self.chunk_object, prompts), "choices": choices}

    def end(self, finished: generate_pb2.Finished | generate_pb2.ChoiceFinished) -> Json:
        """How a choice ended. A stop reason is told if it is of the caller's own."""
        reason: str | int | None = None
        if finished.HasField("stop"):
            reason = finished.stop
        elif finished.stop_token_id in self._body.stop_token_ids:
            reason = finished.stop_token_id
        return {"finish_reason": _REASONS[finished.reason], "stop_reason": reason}

    def count_chars(self, token_ids: Sequence[int]) -> list[int]:
        """How many characters begin in each token, where anybody wants to know."""
        return []

    @abstractmethod
    def heads(self, index: int, prompt: list[int] | None) -> list[Json]:
        """What a stream says of a choice before its output. `prompt`: the prompt's token ids, if they are wanted."""

    @abstractmethod
    def delta_choice(self, index: int, part: Part) -> Json:
        """Output of a choice, in a chunk."""

    @abstractmethod
    def whole_choice(self, index: int, part: Part, end: Json, prompt: list[int] | None) -> Json:
        """A whole choice."""

    @abstractmethod
    def last_choice(self, index: int, end: Json) -> Json:
        """The end of a choice, in a chunk."""

    def _top(self, position: Position, kind: str, prompts: Sequence[list[int]]) -> Json:
        top = {"id": f"{self.id_prefix}-{position.request_id}", "object": kind, "created": position.created_s}
        return {**top, "model": self._model, "system_fingerprint": None}

    def _token_ids(self, part: Part) -> Json:
        return {"token_ids": part.token_ids} if self._body.return_token_ids else {}


class CompletionShape(Shape):
    """POST /v1/completions."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def count_chars(self, token_ids: Sequence[int]) -> list[int]:
        """Log probabilities come with the places of their tokens."""
        if self._body.logprobs is None:
            return []
        return count_chars(token_ids, self._tokenizer, skips_special=self._body.skip_special_tokens)

    def heads(self, index: int, prompt: list[int] | None) -> list[Json]:
        """Nothing but the prompt."""
        if prompt is None:
            return []
        return [{**self.delta_choice(index, Part()), "prompt_token_ids": prompt}]

    def delta_choice(self, index: int, part: Part) -> Json:
        """The text is the choice's own."""
        choice = {"index": index, "text": "".join(part.texts), "logprobs": self._logprobs(part)}
        return {**choice, "finish_reason": None, "stop_reason": None, **self._token_ids(part)}

    def whole_choice(self, index: int, part: Part, end: Json, prompt: list[int] | None) -> Json:
        """As a chunk, with its end, and what is to be told of the prompt."""
        assert isinstance(self._body, CompletionBody)
        choice = {**self.delta_choice(index, part), **end}
        choice["text"] = part.echo_text + choice["text"]
        if part.echo_ids and self._body.logprobs is not None:
            output = choice["logprobs"] or {}
            echo = echo_logprobs(part.echo_ids, part.prompt_logprobs, self._tokenizer, self._body.logprobs)
            choice["logprobs"] = {name: values + output.get(name, []) for name, values in echo.items()}
        if self._body.prompt_logprobs is not None:
            num_top = self._body.prompt_logprobs
            choice["prompt_logprobs"] = prompt_logprobs(part.prompt_logprobs, self._tokenizer, num_top)
        return choice if prompt is None else {**choice, "prompt_token_ids": prompt}

    def last_choice(self, index: int, end: Json) -> Json:
        """No text."""
        return {"index": index, "text": "", "logprobs": None, **end}

    def _logprobs(self, part: Part) -> Json | None:
        if self._body.logprobs is None or not part.logprobs:
            return None
        num_echo_chars = sum(count_chars(part.echo_ids, self._tokenizer, skips_special=True))
        return completion_logprobs(
            part.logprobs,
            self._tokenizer,
            text_offset=num_echo_chars + part.num_chars_before,
            num_chars=self.count_chars(part.token_ids),
        )


class ChatShape(Shape):
    """POST /v1/chat/completions."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def heads(self, index: int, prompt: list[int] | None) -> list[Json]:
        """Whose turn it is."""
        return [self._chunk_choice(index, {"role": "assistant", "content": ""}, None)]

    def delta_choice(self, index: int, part: Part) -> Json:
        """The text is the message's."""
        choice = self._chunk_choice(index, {"content": "".join(part.texts)}, self._logprobs(part))
        return {**choice, **self._token_ids(part)}

    def whole_choice(self, index: int, part: Part, end: Json, prompt: list[int] | None) -> Json:
        """A message."""
        message = {"role": "assistant", "content": "".join(part.texts), "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(part), **end, **self._token_ids(part)}

    def last_choice(self, index: int, end: Json) -> Json:
        """No text."""
        return {"index": index, "delta": {}, "logprobs": None, **end}

    def _top(self, position: Position, kind: str, prompts: Sequence[list[int]]) -> Json:
        top = super()._top(position, kind, prompts)
        return {**top, "prompt_token_ids": prompts[0]} if prompts else top

    def _chunk_choice(self, index: int, delta: Json, logprobs: Json | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None, "stop_reason": None}

    def _logprobs(self, part: Part) -> Json | None:
        assert isinstance(self._body, ChatCompletionBody)
        if not self._body.logprobs:
            return None
        return chat_logprobs(part.logprobs, self._tokenizer, self._body.top_logprobs or 0)


def usage(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int | None = None) -> Json:
    """How many tokens were read and made, over all prompts and choices; cached ones are known at the end."""
    counts: Json = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
    if num_cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": num_cached_tokens}
    return counts
