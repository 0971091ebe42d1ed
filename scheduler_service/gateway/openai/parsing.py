"""How do the bytes of a request become a checked body, and what is said of what cannot be served?"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from scheduler_service.gateway.exceptions import InvalidArgumentError, NotServedError

Body = TypeVar("Body", bound=BaseModel)

# Parameters of OpenAI's and vLLM's APIs that are not served, each with the values that are as good as leaving it out.
NOT_SERVED: Mapping[str, Sequence[Any]] = {
    "audio": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "metadata": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "refusal": (),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_calls": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": ({},),
    "web_search_options": (),
}


def parse_body(kind: type[Body], data: bytes) -> Body:
    """Check a body.

    Raises:
        InvalidArgumentError: it is no JSON object, or a parameter is wrong or unknown.
        NotServedError: a parameter is not served.
    """
    try:
        fields = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgumentError("", f"the body is not valid JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidArgumentError("", "the body must be a JSON object")
    try:
        return kind.model_validate(_without_defaults(fields))
    except ValidationError as error:
        raise _first_problem(error.errors(include_url=False)[0]) from error


def _without_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null, or not served but changes nothing."""
    if "best_of" in fields:
        if fields["best_of"] not in (None, fields.get("n") or 1):
            raise InvalidArgumentError("best_of", "must be n or left out: all completions are given, not the best")
        fields = {name: value for name, value in fields.items() if name != "best_of"}
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not any(_same(value, harmless) for harmless in NOT_SERVED.get(name, ()))
    }


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _first_problem(problem: ErrorDetails) -> InvalidArgumentError | NotServedError:
    place = _path(problem["loc"])
    match problem["type"]:
        case "extra_forbidden" if str(problem["loc"][-1]) in NOT_SERVED:
            return NotServedError(place)
        case "extra_forbidden":
            return InvalidArgumentError(place, "there is no such parameter: leave it out")
        case "missing":
            return InvalidArgumentError(place, "is missing")
        case "value_error" if not place:
            parameter, _, text = problem["msg"].removeprefix("Value error, ").partition(": ")
            return InvalidArgumentError(parameter, text)
        case _:
            text = problem["msg"].removeprefix("Value error, ")
            return InvalidArgumentError(place, text[:1].lower() + text[1:])


def _path(location: tuple[int | str, ...]) -> str:
    """The way to a value, as in messages[0].content."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
