"""What does `LLM` hand back? Objects of vLLM's shape that also answer to nano-vllm's keys."""

from dataclasses import dataclass

from pagewire_client.types import Completion, TokenLogprobs


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion, under vLLM's names. `stop_reason` is the stop text or token that ended it."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt.

    vLLM's shape: `output.outputs[0].text`, `.token_ids`, `output.prompt_token_ids`; nano-vllm's: `output["text"]`,
    `output["token_ids"]`. `prompt` is the text given, None for token ids and chats.
    `prompt_logprobs`: if asked for, an entry per prompt token, None for the first.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int
    finished: bool = True
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def __getitem__(self, key: str) -> str | list[int]:
        if key == "text":
            return self.outputs[0].text
        if key == "token_ids":
            return self.outputs[0].token_ids
        raise KeyError(key)


def request_output(completion: Completion, prompt: str | None, prompt_token_ids: list[int]) -> RequestOutput:
    """Put a completion into that shape."""
    outputs = [
        CompletionOutput(
            index=choice.index,
            text=choice.text,
            token_ids=list(choice.token_ids),
            finish_reason=choice.finish_reason.value,
            stop_reason=choice.matched,
            logprobs=choice.logprobs,
        )
        for choice in completion.choices
    ]
    return RequestOutput(
        completion.request_id,
        prompt,
        prompt_token_ids,
        outputs,
        completion.usage.num_cached_tokens,
        prompt_logprobs=[None, *completion.prompt_logprobs] if completion.prompt_logprobs else None,
    )
