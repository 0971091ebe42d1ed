"""How does a request of vLLM's protocol become one of ours?

Its fields have no presence, most of them: a top_p or repetition_penalty of 0 is an unset one. Fields that only shape
text, which this protocol does not carry, have no effect.
"""

from collections.abc import Sequence
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2

from pagewire.ipc.requests import Limits
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError, NotServedError
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.validation import MAX_REQUEST_ID_CHARS, is_request_id

_SEED_RANGE = 2**64
_MODEL_MAX = -1
# Paths of our fields, which errors name, and of the caller's.
_CALLERS_FIELDS = (
    ("sampling.", "sampling_params."),
    ("stopping.include_stop", "sampling_params.include_stop_str_in_output"),
    ("stopping.", "sampling_params."),
    ("output.", "sampling_params."),
    ("token_ids.ids", "tokenized.input_ids"),
)


async def to_generate_request(
    request: vllm_engine_pb2.GenerateRequest, prompts: PromptReader, limits: Limits
) -> generate_pb2.GenerateRequest:
    """Translate a request.

    Args:
        request: as it arrived.
        prompts: tokenizes text.
        limits: `max_tokens` beyond the engine's lengths means these, as in vLLM.
    Raises:
        RequestError: it asks for what is not served, or has no prompt.
    """
    _check_served(request)
    params = request.sampling_params
    token_ids = await _prompt_ids(request, prompts)
    longest = min(limits.max_model_len, limits.num_blocks * limits.block_size + 1)
    converted = generate_pb2.GenerateRequest(
        request_id=_request_id(request.request_id),
        token_ids=generate_pb2.TokenIds(ids=_truncated(token_ids, params, longest)),
        sampling=_sampling(params),
        stopping=generate_pb2.StopConditions(
            min_tokens=params.min_tokens,
            stop=params.stop,
            stop_token_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
            include_stop=params.include_stop_str_in_output,
        ),
        output=generate_pb2.OutputOptions(
            token_ids_only=True,
            skip_special_tokens=params.skip_special_tokens,
            kind=generate_pb2.OUTPUT_KIND_DELTA if request.stream else generate_pb2.OUTPUT_KIND_FINAL_ONLY,
        ),
    )
    room = longest - len(converted.token_ids.ids)
    if params.HasField("max_tokens"):
        converted.stopping.max_tokens = min(params.max_tokens, room) if room > 0 else params.max_tokens
    for name in ("logprobs", "prompt_logprobs"):
        if params.HasField(name):
            count = _not_negative(getattr(params, name), f"sampling_params.{name}", "all of the vocabulary")
            setattr(converted.output, name, count)
    return converted


def in_callers_words(error: InvalidArgumentError) -> InvalidArgumentError:
    """An error about a converted request, with the name that the field has in the caller's."""
    for ours, callers in _CALLERS_FIELDS:
        if error.field.startswith(ours):
            return InvalidArgumentError(callers + error.field.removeprefix(ours), error.problem)
    return error


def _request_id(callers: str) -> str:
    """The caller's id, or the end of it, which tells requests apart; empty, to be drawn, if it may not be an id."""
    end = callers[-MAX_REQUEST_ID_CHARS:]
    return end if is_request_id(end) else ""


def _check_served(request: vllm_engine_pb2.GenerateRequest) -> None:
    params = request.sampling_params
    constraint = params.WhichOneof("constraint")
    asked_for = {
        f"sampling_params.{constraint}": constraint is not None,
        "kv_transfer_params": request.HasField("kv_transfer_params"),
        "kv_transfer_params_json": request.HasField("kv_transfer_params_json"),
        "mm_inputs": request.HasField("mm_inputs"),
        "extra_mm_inputs": len(request.extra_mm_inputs) > 0,
        "media_refs": request.HasField("media_refs"),
        "data_parallel_rank": request.data_parallel_rank != 0,
    }
    for field, is_asked_for in asked_for.items():
        if is_asked_for:
            raise NotServedError(field)


async def _prompt_ids(request: vllm_engine_pb2.GenerateRequest, prompts: PromptReader) -> Sequence[int]:
    match request.WhichOneof("input"):
        case "tokenized":
            token_ids: Sequence[int] = request.tokenized.input_ids
            field = "tokenized.input_ids"
        case "text":
            token_ids = await prompts.read_text(request.text, add_special_tokens=True)
            field = "text"
        case _:
            raise InvalidArgumentError("input", "is missing: set one of tokenized and text")
    if not token_ids:
        raise InvalidArgumentError(field, "is an empty prompt: it must have at least one token")
    return token_ids


def _truncated(token_ids: Sequence[int], params: vllm_engine_pb2.SamplingParams, longest: int) -> Sequence[int]:
    if not params.HasField("truncate_prompt_tokens"):
        return token_ids
    kept = params.truncate_prompt_tokens
    if kept == _MODEL_MAX:
        kept = longest - 1
    if kept < 1:
        raise InvalidArgumentError(
            "sampling_params.truncate_prompt_tokens", f"is {kept}, must be at least 1, or -1 for what the model takes"
        )
    return token_ids[-kept:]


def _sampling(params: vllm_engine_pb2.SamplingParams) -> generate_pb2.SamplingParams:
    optional: dict[str, Any] = {}
    if params.HasField("temperature"):
        optional["temperature"] = params.temperature
    if params.HasField("seed"):
        optional["seed"] = params.seed % _SEED_RANGE
    biases = {
        _not_negative(token_id, "sampling_params.logit_bias", "no token"): bias
        for token_id, bias in params.logit_bias.items()
    }
    return generate_pb2.SamplingParams(
        top_k=params.top_k,
        top_p=params.top_p or 1.0,
        min_p=params.min_p,
        n=params.n or 1,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty or 1.0,
        logit_bias=biases,
        **optional,
    )


def _not_negative(value: int, field: str, meaning: str) -> int:
    if value < 0:
        raise InvalidArgumentError(field, f"has {value}, which means {meaning}: it must not be negative here")
    return value
