"""Which generations does one request stand for? One for each of its n choices."""

import msgspec

from pagewire.ipc.requests import Sampling
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError
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


def sampling_of_choice(sampling: Sampling, index: int) -> Sampling:
    """Choices differ by their seeds: choice i has the request's plus i."""
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % _SEED_RANGE) if index else sampling


def id_of_choice(request_id: str, index: int) -> str:
    """How the scheduler knows a choice. No caller's id has this character."""
    return f"{request_id}#{index}" if index else request_id
