"""Which sampling parameters does a request have? Their names are vLLM's, as Triton's vLLM backend takes them.

They are the fields of a JSON object in the input `sampling_parameters`, or parameters of the request. Numbers may be
written as text, which that backend's own clients do.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from pagewire.open_inference.grpc_service_pb2 import InferParameter
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError


def set_parameter(request: generate_pb2.GenerateRequest, name: str, value: object) -> None:
    """Set the field of a request that a parameter stands for.

    Raises:
        InvalidArgumentError: there is no such parameter, or its value is of the wrong kind.
    """
    if name not in _PARAMETERS:
        raise InvalidArgumentError(name, f"is no parameter that is known: known are {', '.join(_PARAMETERS)}")
    section_name, field, convert = _PARAMETERS[name]
    section: Message = getattr(request, section_name)
    try:
        converted = convert(value)
        if isinstance(converted, list):
            getattr(section, field).extend(converted)
        elif isinstance(converted, dict):
            getattr(section, field).update(converted)
        else:
            setattr(section, field, converted)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(name, f"is {value!r}, which cannot be used: {error}") from error


def read_json(text: str) -> Iterator[tuple[str, object]]:
    """Names and values in the input `sampling_parameters`.

    Raises:
        InvalidArgumentError: it is not a JSON object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("sampling_parameters", f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError("sampling_parameters", "must be a JSON object")
    yield from content.items()


def read_map(parameters: Mapping[str, InferParameter]) -> Iterator[tuple[str, object]]:
    """Names and values of a request's parameters."""
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        yield name, None if kind is None else getattr(parameter, kind)


def callers_name(field: str) -> str:
    """The parameter that sets a field of the request, given the field's path; the path if there is none."""
    for name, (section, ours, _) in _PARAMETERS.items():
        path = f"{section}.{ours}"
        if field == path or field.startswith(f"{path}["):
            return name + field.removeprefix(path)
    return field


def _number(value: Any) -> float:
    _refuse_bool(value)
    return float(value)


def _integer(value: Any) -> int:
    _refuse_bool(value)
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError("it must be a whole number")
    return number


def _top_k(value: Any) -> int:
    """-1 means all, as 0 does."""
    number = _integer(value)
    return 0 if number == -1 else number


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise TypeError("it must be true or false")
    return value


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("it must be a text or a list of texts")
    return texts


def _integers(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise TypeError("it must be a list of whole numbers")
    return [_integer(element) for element in value]


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise TypeError("it must be an object of token ids and numbers")
    return {int(token_id): _number(bias) for token_id, bias in value.items()}


def _refuse_bool(value: object) -> None:
    if isinstance(value, bool):
        raise TypeError("it must be a number")


# Parameter: the part and the field of our request, and how its value is read.
_PARAMETERS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "temperature": ("sampling", "temperature", _number),
    "top_k": ("sampling", "top_k", _top_k),
    "top_p": ("sampling", "top_p", _number),
    "min_p": ("sampling", "min_p", _number),
    "seed": ("sampling", "seed", _integer),
    "presence_penalty": ("sampling", "presence_penalty", _number),
    "frequency_penalty": ("sampling", "frequency_penalty", _number),
    "repetition_penalty": ("sampling", "repetition_penalty", _number),
    "logit_bias": ("sampling", "logit_bias", _biases),
    "allowed_token_ids": ("sampling", "allowed_token_ids", _integers),
    "bad_words": ("sampling", "bad_words", _texts),
    "max_tokens": ("stopping", "max_tokens", _integer),
    "min_tokens": ("stopping", "min_tokens", _integer),
    "stop": ("stopping", "stop", _texts),
    "stop_token_ids": ("stopping", "stop_token_ids", _integers),
    "ignore_eos": ("stopping", "ignore_eos", _flag),
    "include_stop_str_in_output": ("stopping", "include_stop", _flag),
    "skip_special_tokens": ("output", "skip_special_tokens", _flag),
}
