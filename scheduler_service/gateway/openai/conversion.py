"""Which GenerateRequests does a body stand for? One for each of its prompts."""

from collections.abc import Sequence

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.openai.bodies import ChatCompletionBody, CompletionBody, GenerationBody, Prompt
from scheduler_service.gateway.prompts import PromptReader

_SEED_RANGE = 2**64
_MAX_TOKEN_ID = 2**32 - 1


def to_requests(
    body: CompletionBody | ChatCompletionBody, *, request_id: str, seed: int, is_resumed: bool
) -> list[generate_pb2.GenerateRequest]:
    """Say the same in pagewire.v1.

    Args:
        body: the request.
        request_id: for the first prompt's request; the others' ends with the prompt's number.
        seed: for the first prompt's request. Without a seed of the caller's own the next prompt's choices go on where
            the last one's end; with one, every prompt has that.
        is_resumed: whether an earlier answer to this request was cut off.
    Raises:
        InvalidArgumentError: a token id of logit_bias is none, or a number for the chat template is too large.
    """
    common = _common(body)
    requests = []
    prompts: Sequence[Prompt | None] = body.prompt if isinstance(body, CompletionBody) else [None]
    for index, prompt in enumerate(prompts):
        request = generate_pb2.GenerateRequest()
        request.CopyFrom(common)
        if prompt is None:
            assert isinstance(body, ChatCompletionBody)
            request.chat.CopyFrom(_chat(body))
        elif isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        own_id = f"{request_id}.{index}" if index else request_id
        own_seed = (seed if body.seed is not None else seed + index * body.n) % _SEED_RANGE
        if body.seed is not None:
            request.sampling.seed = body.seed % _SEED_RANGE
        if is_resumed:
            request.resume.request_id, request.resume.seed = own_id, own_seed
        else:
            request.request_id, request.sampling.seed = own_id, own_seed
        requests.append(request)
    return requests


async def read_prompt(request: generate_pb2.GenerateRequest, prompts: PromptReader) -> list[int]:
    """Replace a request's prompt by its token ids, which are returned, for a caller who wants to know them.

    Raises:
        RequestError: the prompt cannot be read.
    """
    match request.WhichOneof("prompt"):
        case "text":
            token_ids = await prompts.read_text(request.text, add_special_tokens=request.add_special_tokens)
        case "chat":
            token_ids = await prompts.read_chat(request.chat)
        case _:
            token_ids = list(request.token_ids.ids)
    if request.HasField("truncate_prompt_tokens") and request.truncate_prompt_tokens:
        token_ids = token_ids[-request.truncate_prompt_tokens :]
    request.token_ids.ids[:] = token_ids
    return token_ids


def _common(body: CompletionBody | ChatCompletionBody) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(
        model=body.model,
        sampling=_sampling(body),
        stopping=_stopping(body),
        output=generate_pb2.OutputOptions(
            logprobs=_num_logprobs(body),
            prompt_logprobs=_num_prompt_logprobs(body),
            echo=isinstance(body, CompletionBody) and body.echo,
            skip_special_tokens=body.skip_special_tokens,
            kind=generate_pb2.OUTPUT_KIND_DELTA if body.stream else generate_pb2.OUTPUT_KIND_FINAL_ONLY,
        ),
        # vLLM serves lower priorities first.
        priority=-body.priority,
        cache_salt=body.cache_salt,
        add_special_tokens=body.add_special_tokens,
    )
    if body.truncate_prompt_tokens is not None:
        request.truncate_prompt_tokens = body.truncate_prompt_tokens
    return request


def _sampling(body: GenerationBody) -> generate_pb2.SamplingParams:
    return generate_pb2.SamplingParams(
        temperature=body.temperature,
        top_k=max(body.top_k, 0),
        top_p=body.top_p,
        min_p=body.min_p,
        n=body.n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias={_bias_id(token_id): bias for token_id, bias in body.logit_bias.items()},
        allowed_token_ids=body.allowed_token_ids,
        bad_words=body.bad_words,
    )


def _bias_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_TOKEN_ID):
        raise InvalidArgumentError("logit_bias", f"{text[:20]!r} is no token id")
    return int(text)


def _stopping(body: CompletionBody | ChatCompletionBody) -> generate_pb2.StopConditions:
    max_tokens = body.max_tokens
    if isinstance(body, ChatCompletionBody) and body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
    return generate_pb2.StopConditions(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        include_stop=body.include_stop_str_in_output,
    )


def _num_logprobs(body: CompletionBody | ChatCompletionBody) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def _num_prompt_logprobs(body: CompletionBody | ChatCompletionBody) -> int | None:
    """An echo comes with the log probabilities that the output has."""
    if not isinstance(body, CompletionBody):
        return None
    echoed = body.logprobs if body.echo else None
    return max((count for count in (echoed, body.prompt_logprobs) if count is not None), default=None)


def _chat(body: ChatCompletionBody) -> generate_pb2.Chat:
    chat = generate_pb2.Chat(
        messages=[
            generate_pb2.ChatMessage(role=message.role, content=message.content, name=message.name)
            for message in body.messages
        ],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        template=body.chat_template,
    )
    try:
        chat.template_args.update(body.chat_template_kwargs)
    except OverflowError as error:
        raise InvalidArgumentError("chat_template_kwargs", "has a number that no double can hold") from error
    return chat
