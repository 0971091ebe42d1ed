"""Are the plain fields of a Generate request within the ranges that the API states, and served at all?"""

import re
import secrets
from collections.abc import Sequence
from typing import Literal

from pagewire.ipc.requests import Penalties, Sampling
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError, NotServedError

MAX_REQUEST_ID_CHARS = 64

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARS}}}")
_MAX_PRIORITY = 1000
_MAX_STOP_TEXTS = 16
_MAX_STOP_TEXT_CHARS = 1024
_MAX_STOP_TOKEN_IDS = 256
_MAX_TEMPERATURE = 100.0
_MAX_ADDITIVE_PENALTY = 2.0
# Logits times this are finite.
_MAX_REPETITION_PENALTY = 100.0
_MAX_LOGPROBS = 20
_SEED_BITS = 63


def check_served(request: generate_pb2.GenerateRequest) -> None:
    """Refuse what this server does not do yet.

    Raises:
        InvalidArgumentError: such a field is out of its range, too.
        NotServedError: it is not.
    """
    asked_for = {
        "constraint": request.HasField("constraint"),
        "adapter": bool(request.adapter),
    }
    for field, is_asked_for in asked_for.items():
        if is_asked_for:
            raise NotServedError(field)


def check_sampling(request: generate_pb2.GenerateRequest, vocab_size: int, resumed_seed: int | None) -> Sampling:
    """Fill in defaults and check ranges; a missing seed is drawn now.

    Raises:
        InvalidArgumentError: a value is out of its range or not a number.
    """
    params = request.sampling
    temperature = params.temperature if params.HasField("temperature") else 1.0
    if not 0.0 <= temperature <= _MAX_TEMPERATURE:
        raise InvalidArgumentError("sampling.temperature", f"is {temperature:g}, must be 0 to {_MAX_TEMPERATURE:g}")
    top_p = params.top_p if params.HasField("top_p") else 1.0
    if not 0.0 < top_p <= 1.0:
        raise InvalidArgumentError("sampling.top_p", f"is {top_p:g}, must be above 0 and at most 1")
    if not 0.0 <= params.min_p <= 1.0:
        raise InvalidArgumentError("sampling.min_p", f"is {params.min_p:g}, must be 0 to 1")
    top_k = params.top_k if params.top_k < vocab_size else 0
    return Sampling(
        temperature,
        top_k,
        top_p,
        params.min_p,
        _seed(params, resumed_seed),
        _check_penalties(params),
        num_logprobs=check_num_logprobs(request.output, "logprobs", vocab_size),
        num_prompt_logprobs=check_num_logprobs(request.output, "prompt_logprobs", vocab_size),
    )


def check_stop_texts(stops: Sequence[str]) -> tuple[str, ...]:
    """Check the stop texts.

    Raises:
        InvalidArgumentError: one is empty or too long, or they are too many.
    """
    if len(stops) > _MAX_STOP_TEXTS:
        raise InvalidArgumentError("stopping.stop", f"has {len(stops)} texts, may have {_MAX_STOP_TEXTS}")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= _MAX_STOP_TEXT_CHARS:
            raise InvalidArgumentError(
                f"stopping.stop[{index}]", f"has {len(stop)} characters, must have 1 to {_MAX_STOP_TEXT_CHARS}"
            )
    return tuple(stops)


def check_stop_token_ids(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Check the stop tokens.

    Raises:
        InvalidArgumentError: one does not exist, or they are too many.
    """
    if len(token_ids) > _MAX_STOP_TOKEN_IDS:
        raise InvalidArgumentError(
            "stopping.stop_token_ids", f"has {len(token_ids)} ids, may have {_MAX_STOP_TOKEN_IDS}"
        )
    check_token_ids(token_ids, vocab_size, "stopping.stop_token_ids")
    return tuple(token_ids)


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Check that the model knows every token.

    Raises:
        InvalidArgumentError: it does not; the message names the first such id and its index.
    """
    if not token_ids or max(token_ids) < vocab_size:
        return
    index, token_id = next((index, token_id) for index, token_id in enumerate(token_ids) if token_id >= vocab_size)
    raise InvalidArgumentError(
        f"{field}[{index}]", f"is {token_id}, must be below the model's vocabulary size {vocab_size}"
    )


def check_priority(priority: int) -> int:
    """Check the priority.

    Raises:
        InvalidArgumentError: it is out of range.
    """
    if not -_MAX_PRIORITY <= priority <= _MAX_PRIORITY:
        raise InvalidArgumentError("priority", f"is {priority}, must be -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
    return priority


def check_output_kind(kind: int) -> bool:
    """Check the output kind; tells whether output is sent at the end alone.

    Raises:
        InvalidArgumentError: there is no such kind.
    """
    if kind not in generate_pb2.OutputKind.values():
        raise InvalidArgumentError("output.kind", f"is {kind}, which this server does not know")
    return kind == generate_pb2.OUTPUT_KIND_FINAL_ONLY


def check_request_id(request: generate_pb2.GenerateRequest) -> str:
    """The request's id: the resumed stream's, the caller's own, or one drawn now.

    Raises:
        InvalidArgumentError: the given id is not well formed, or two given ids differ.
    """
    field = "resume.request_id" if request.HasField("resume") else "request_id"
    request_id = request.resume.request_id if request.HasField("resume") else request.request_id
    if request.request_id and request.request_id != request_id:
        raise InvalidArgumentError("request_id", "differs from resume.request_id: leave one of them out")
    if not request_id and field == "request_id":
        return secrets.token_hex(16)
    if not is_request_id(request_id):
        raise InvalidArgumentError(field, "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return request_id


def is_request_id(text: str) -> bool:
    """Whether a text may be a request's id."""
    return _REQUEST_ID.fullmatch(text) is not None


def check_num_logprobs(
    output: generate_pb2.OutputOptions, field: Literal["logprobs", "prompt_logprobs"], vocab_size: int
) -> int | None:
    """How many alternatives come with each token's log probability; None if none is wanted.

    Args:
        field: whether of output or prompt tokens.
    Raises:
        InvalidArgumentError: they are too many.
    """
    if not output.HasField(field):
        return None
    num_logprobs: int = getattr(output, field)
    if num_logprobs > _MAX_LOGPROBS:
        raise InvalidArgumentError(f"output.{field}", f"is {num_logprobs}, must be 0 to {_MAX_LOGPROBS}")
    return min(num_logprobs, vocab_size)


def check_received_of_prompt(request: generate_pb2.GenerateRequest, num_prompt_tokens: int, num_choices: int) -> None:
    """Check how much of the prompt itself the caller says to have received.

    Raises:
        InvalidArgumentError: it is more than there is, or was not asked for.
    """
    resume, output = request.resume, request.output
    most = num_prompt_tokens - 1 if output.HasField("prompt_logprobs") else 0
    if resume.num_received_prompt_logprobs > most:
        raise InvalidArgumentError(
            "resume.num_received_prompt_logprobs",
            f"is {resume.num_received_prompt_logprobs}, and this request has {most} in all",
        )
    most = num_choices if output.echo else 0
    if resume.num_received_echoes > most:
        raise InvalidArgumentError(
            "resume.num_received_echoes", f"is {resume.num_received_echoes}, and this request has {most} in all"
        )


def _check_penalties(params: generate_pb2.SamplingParams) -> Penalties | None:
    for name, value in (("presence_penalty", params.presence_penalty), ("frequency_penalty", params.frequency_penalty)):
        if not -_MAX_ADDITIVE_PENALTY <= value <= _MAX_ADDITIVE_PENALTY:
            raise InvalidArgumentError(
                f"sampling.{name}", f"is {value:g}, must be -{_MAX_ADDITIVE_PENALTY:g} to {_MAX_ADDITIVE_PENALTY:g}"
            )
    repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    if not 1.0 / _MAX_REPETITION_PENALTY <= repetition <= _MAX_REPETITION_PENALTY:
        raise InvalidArgumentError(
            "sampling.repetition_penalty",
            f"is {repetition:g}, must be {1.0 / _MAX_REPETITION_PENALTY:g} to {_MAX_REPETITION_PENALTY:g}",
        )
    penalties = Penalties(repetition, params.frequency_penalty, params.presence_penalty)
    return None if penalties == Penalties(1.0, 0.0, 0.0) else penalties


def _seed(params: generate_pb2.SamplingParams, resumed_seed: int | None) -> int:
    if resumed_seed is None:
        return params.seed if params.HasField("seed") else secrets.randbits(_SEED_BITS)
    if params.HasField("seed") and params.seed != resumed_seed:
        raise InvalidArgumentError("sampling.seed", "differs from resume.seed: leave one of them out")
    return resumed_seed
