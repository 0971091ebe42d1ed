"""Which generations does one request stand for? One for each of its n choices."""

import dataclasses

import msgspec

from pagewire.ipc.requests import Limits
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.sent_tokens import SentTokens
from scheduler_service.gateway.validation import check_token_ids

_MAX_CHOICES = 128
_SEED_RANGE = 2**64


def check_num_choices(params: generate_pb2.SamplingParams) -> int:
    """Completions per prompt.

    Raises:
        InvalidArgumentError: it is out of range.
    """
    if not params.HasField("n"):
        return 1
    if not 1 <= params.n <= _MAX_CHOICES:
        raise InvalidArgumentError("sampling.n", f"is {params.n}, must be 1 to {_MAX_CHOICES}")
    return params.n


def check_queue_can_hold(num_choices: int, num_prompt_tokens: int, limits: Limits) -> None:
    """Check that all choices could ever wait together, for they are taken together or not at all.

    Raises:
        InvalidArgumentError: they are more than the queue holds even when it is empty.
    """
    most = limits.max_waiting_requests
    if most is not None and num_choices > most:
        raise InvalidArgumentError(
            "sampling.n", f"is {num_choices}, must be at most the {most} requests that may wait (max_waiting_requests)"
        )
    most, num_tokens = limits.max_waiting_tokens, num_choices * num_prompt_tokens
    if most is not None and num_choices > 1 and num_tokens > most:
        raise InvalidArgumentError(
            "sampling.n",
            f"is {num_choices}, and with {num_prompt_tokens} prompt tokens each more than the {most} tokens that may "
            "wait (max_waiting_tokens)",
        )


def received_by_choice(resume: generate_pb2.Resume, num_choices: int, vocab_size: int) -> list[list[int]]:
    """The output tokens that the caller has of each choice.

    Raises:
        InvalidArgumentError: a choice or a token does not exist, or they are given in the other field.
    """
    if num_choices == 1:
        if resume.choices:
            raise InvalidArgumentError("resume.choices", "is for n above 1: send resume.received_token_ids")
        check_token_ids(resume.received_token_ids, vocab_size, "resume.received_token_ids")
        return [list(resume.received_token_ids)]
    if resume.received_token_ids:
        raise InvalidArgumentError("resume.received_token_ids", "is for n of 1: send resume.choices")
    received: list[list[int]] = [[] for _ in range(num_choices)]
    for place, choice in enumerate(resume.choices):
        if choice.index >= num_choices:
            raise InvalidArgumentError(
                f"resume.choices[{place}].index", f"is {choice.index}, must be below the {num_choices} of n"
            )
        if received[choice.index]:
            raise InvalidArgumentError(f"resume.choices[{place}].index", f"is {choice.index} again")
        check_token_ids(choice.received_token_ids, vocab_size, f"resume.choices[{place}].received_token_ids")
        received[choice.index] = list(choice.received_token_ids)
    return received


def choice_of(
    first: Generation, index: int, received_ids: list[int], sent: SentTokens, *, is_echoed: bool
) -> Generation:
    """Choice `index` of a request whose choice 0 is `first`: its seed is the request's plus the index.

    The scheduler knows it by an id with a character that no caller's id has. The prompt's log probabilities come with
    choice 0; `is_echoed`: the caller has its echo.
    """
    if index == 0:
        return dataclasses.replace(first, echo=None) if is_echoed else first
    seed = (first.sampling.seed + index) % _SEED_RANGE
    return dataclasses.replace(
        first,
        request_id=f"{first.request_id}#{index}",
        sampling=msgspec.structs.replace(first.sampling, seed=seed, num_prompt_logprobs=None),
        received_ids=int32_array(received_ids),
        sent=sent,
        num_received_prompt_logprobs=0,
        echo=None if is_echoed else first.echo,
    )
