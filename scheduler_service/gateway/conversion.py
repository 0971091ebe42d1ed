"""How does a Generate request become Generations? Every field is checked; nothing is ignored."""

import dataclasses
import time
from collections.abc import Sequence

import msgspec

from pagewire.ipc.requests import Limits, ModelInfo
from pagewire.v1 import generate_pb2
from scheduler_service.gateway import validation
from scheduler_service.gateway.auth.caller import ANYONE, Caller
from scheduler_service.gateway.choices import check_num_choices, check_queue_can_hold, choice_of, received_by_choice
from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.sent_tokens import NOTHING_SENT, SentTokens
from scheduler_service.gateway.token_rules import to_token_rules


async def to_generations(
    request: generate_pb2.GenerateRequest,
    *,
    prompts: PromptReader,
    model: ModelInfo,
    limits: Limits,
    time_remaining_s: float | None,
    sent: Sequence[SentTokens] = (),
    caller: Caller = ANYONE,
) -> list[Generation]:
    """Check a request and gather all it asks for: one generation for each of its choices.

    Args:
        request: as it arrived, its model name checked already.
        prompts: tokenizes the prompt.
        model: the loaded model.
        limits: what the engine can run.
        time_remaining_s: until the call's deadline; None if it has none.
        sent: of a resumed request whose caller kept no token ids, what it has of each choice.
        caller: who asks.
    Raises:
        RequestError: the request cannot be served; the message names the field.
    """
    validation.check_served(request)
    num_choices = check_num_choices(request.sampling)
    received = received_by_choice(request.resume, num_choices, model.vocab_size)
    sent = sent or [NOTHING_SENT] * num_choices
    only = await _only_choice(request, prompts, model, limits, caller)
    validation.check_received_of_prompt(request, len(only.prompt_ids), num_choices)
    check_queue_can_hold(num_choices, len(only.prompt_ids), limits)
    if max(*map(len, received), *(choice.num_tokens for choice in sent)) > only.max_tokens:
        raise InvalidArgumentError(
            "resume.received_token_ids", f"has more ids than the {only.max_tokens} of max_tokens"
        )
    deadline_s = None if time_remaining_s is None else time.time() + time_remaining_s
    first = dataclasses.replace(only, deadline_s=deadline_s, received_ids=int32_array(received[0]), sent=sent[0])
    num_echoes = request.resume.num_received_echoes
    return [
        choice_of(first, index, received[index], sent[index], is_echoed=index < num_echoes)
        for index in range(num_choices)
    ]


async def _only_choice(
    request: generate_pb2.GenerateRequest, prompts: PromptReader, model: ModelInfo, limits: Limits, caller: Caller
) -> Generation:
    """The request as if it were for one choice, of which its caller has nothing yet, without a deadline."""
    is_resumed = request.HasField("resume")
    stopping, output = request.stopping, request.output
    request_id = validation.check_request_id(request)
    sampling = validation.check_sampling(request, model.vocab_size, request.resume.seed if is_resumed else None)
    stop_texts = validation.check_stop_texts(stopping.stop)
    stop_token_ids = validation.check_stop_token_ids(stopping.stop_token_ids, model.vocab_size)
    priority = caller.allowed_priority(validation.check_priority(request.priority))
    rules = await to_token_rules(request.sampling, prompts, model.vocab_size)
    prompt_ids = await _prompt_ids(request, prompts, model)
    max_tokens = _max_tokens(stopping, len(prompt_ids), limits)
    return Generation(
        request_id=request_id,
        prompt_ids=int32_array(prompt_ids),
        received_ids=int32_array(),
        sampling=msgspec.structs.replace(sampling, rules=rules) if rules else sampling,
        max_tokens=max_tokens,
        min_tokens=_min_tokens(stopping, max_tokens),
        stop_token_ids=stop_token_ids,
        end_token_ids=frozenset(stop_token_ids if stopping.ignore_eos else stop_token_ids + model.eos_token_ids),
        ignore_eos=stopping.ignore_eos,
        priority=priority,
        cache_salt=caller.salted(request.cache_salt),
        deadline_s=None,
        stop_texts=stop_texts,
        include_stop=stopping.include_stop,
        skip_special_tokens=output.skip_special_tokens if output.HasField("skip_special_tokens") else True,
        sends_text=not output.token_ids_only,
        is_final_only=validation.check_output_kind(output.kind),
        is_resumed=is_resumed,
        num_received_prompt_logprobs=request.resume.num_received_prompt_logprobs,
        echo=await _echo(request, prompt_ids, prompts) if output.echo else None,
        tenant=caller.tenant,
    )


async def _echo(request: generate_pb2.GenerateRequest, prompt_ids: Sequence[int], prompts: PromptReader) -> str:
    """The prompt's text: as it was sent, or that of its tokens."""
    if request.WhichOneof("prompt") == "text" and not request.HasField("truncate_prompt_tokens"):
        return request.text
    output = request.output
    skip = output.skip_special_tokens if output.HasField("skip_special_tokens") else True
    return await prompts.read_token_ids(prompt_ids, skip_special_tokens=skip)


async def _prompt_ids(request: generate_pb2.GenerateRequest, prompts: PromptReader, model: ModelInfo) -> Sequence[int]:
    kind = request.WhichOneof("prompt")
    token_ids: Sequence[int]
    if kind == "text":
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        token_ids = await prompts.read_text(request.text, add_special_tokens=special)
    elif kind == "chat":
        token_ids = await prompts.read_chat(request.chat)
    elif kind == "token_ids":
        token_ids = request.token_ids.ids
        validation.check_token_ids(token_ids, model.vocab_size, "token_ids.ids")
    else:
        raise InvalidArgumentError("prompt", "is missing: set one of text, token_ids and chat")
    if not token_ids:
        raise InvalidArgumentError(kind, "is an empty prompt: it must have at least one token")
    return _truncated(request, token_ids)


def _truncated(request: generate_pb2.GenerateRequest, token_ids: Sequence[int]) -> Sequence[int]:
    if not request.HasField("truncate_prompt_tokens"):
        return token_ids
    if request.truncate_prompt_tokens < 1:
        raise InvalidArgumentError("truncate_prompt_tokens", "is 0, must be at least 1")
    return token_ids[-request.truncate_prompt_tokens :]


def _max_tokens(stopping: generate_pb2.StopConditions, num_prompt_tokens: int, limits: Limits) -> int:
    """Most output tokens: those asked for, or those that fit."""
    # The last token is never computed, so it needs no room in the KV cache.
    cache_tokens = limits.num_blocks * limits.block_size + 1
    longest = min(limits.max_model_len, cache_tokens)
    name = "max_model_len" if longest == limits.max_model_len else "the KV cache"
    if num_prompt_tokens >= longest:
        raise InvalidArgumentError(
            "prompt",
            f"has {num_prompt_tokens} tokens, which leaves no room for output: "
            f"{name} allows {longest} for prompt and output together",
        )
    if not stopping.HasField("max_tokens"):
        return longest - num_prompt_tokens
    if stopping.max_tokens < 1:
        raise InvalidArgumentError("stopping.max_tokens", "is 0, must be at least 1")
    if num_prompt_tokens + stopping.max_tokens > longest:
        raise InvalidArgumentError(
            "stopping.max_tokens",
            f"is {stopping.max_tokens}, and with {num_prompt_tokens} prompt tokens more than the {longest} "
            f"that {name} allows for prompt and output together",
        )
    return stopping.max_tokens


def _min_tokens(stopping: generate_pb2.StopConditions, max_tokens: int) -> int:
    if stopping.min_tokens > max_tokens:
        raise InvalidArgumentError(
            "stopping.min_tokens", f"is {stopping.min_tokens}, must be at most the {max_tokens} of max_tokens"
        )
    return stopping.min_tokens
