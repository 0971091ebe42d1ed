"""What does one inference request ask for, and how is it answered? A text comes in, and a text goes out."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pagewire.open_inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError, UnknownModelError
from scheduler_service.gateway.open_inference import parameters
from scheduler_service.gateway.open_inference.tensors import Inputs, add_text
from scheduler_service.gateway.served_model import ServedModel

TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
STREAM, EXCLUDE_INPUT, SAMPLING_PARAMETERS = "stream", "exclude_input_in_output", "sampling_parameters"
VERSION = "1"

_INPUTS = (TEXT_INPUT, STREAM, EXCLUDE_INPUT, SAMPLING_PARAMETERS)
_FINAL = "triton_final_response"
# Of Triton's clients: every last response is sent here, empty or not.
_WANTS_EMPTY_FINAL = "triton_enable_empty_final_response"
_TIMEOUT_US = "timeout"
_FINISH_REASONS = {generate_pb2.FINISH_REASON_STOP: "stop", generate_pb2.FINISH_REASON_LENGTH: "length"}

Write = Callable[[ModelInferResponse], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Inference:
    """A request that was read. `prefix` is what the output text begins with, `timeout_s` how long it may take."""

    request: generate_pb2.GenerateRequest
    is_streamed: bool
    prefix: str
    timeout_s: float | None

    def time_remaining_s(self, calls_s: float | None) -> float | None:
        """Until the first of its own deadline and the call's, if there is any."""
        return min((limit for limit in (self.timeout_s, calls_s) if limit is not None), default=None)


def is_served(model: ServedModel, name: str, version: str) -> bool:
    """Whether this is the model and the version that is served; a name or version that is empty means any."""
    return name in ("", model.name) and version in ("", VERSION)


def check_served(model: ServedModel, name: str, version: str) -> None:
    """Is this the model and the version that is served?

    Raises:
        UnknownModelError: it is not.
    """
    model.check_name(name)
    if not is_served(model, name, version):
        raise UnknownModelError(f"{name} version {version}", f"{model.name} version {VERSION}")


def read(request: ModelInferRequest) -> Inference:
    """Read a request.

    Raises:
        InvalidArgumentError: a tensor or a parameter is missing, unknown or wrong.
    """
    inputs = Inputs(request)
    for name in inputs.names:
        if name not in _INPUTS:
            raise InvalidArgumentError(name, f"is no input of this model: it has {', '.join(_INPUTS)}")
    for output in request.outputs:
        if output.name != TEXT_OUTPUT or output.parameters:
            raise InvalidArgumentError(
                f"outputs.{output.name}", f"is not what this model gives: it has {TEXT_OUTPUT}, without parameters"
            )
    prompt = inputs.text(TEXT_INPUT)
    if prompt is None:
        raise InvalidArgumentError(TEXT_INPUT, "is missing: send it as a BYTES tensor of shape [1]")
    is_streamed = inputs.flag(STREAM) or False
    excludes_input = inputs.flag(EXCLUDE_INPUT)
    if is_streamed and excludes_input is False:
        raise InvalidArgumentError(EXCLUDE_INPUT, "is false, which a streamed request cannot have: leave it out")
    kind = generate_pb2.OUTPUT_KIND_DELTA if is_streamed else generate_pb2.OUTPUT_KIND_FINAL_ONLY
    converted = generate_pb2.GenerateRequest(model=request.model_name, text=prompt)
    converted.output.kind = kind
    for name, value in parameters.read_json(inputs.text(SAMPLING_PARAMETERS) or "{}"):
        parameters.set_parameter(converted, name, value)
    timeout_us = request.parameters[_TIMEOUT_US].int64_param if _TIMEOUT_US in request.parameters else 0
    for name, value in parameters.read_map(request.parameters):
        if name not in (_WANTS_EMPTY_FINAL, _TIMEOUT_US):
            parameters.set_parameter(converted, name, value)
    prefix = prompt if excludes_input is False else ""
    return Inference(converted, is_streamed, prefix, timeout_us / 1e6 if timeout_us > 0 else None)


def in_callers_words(error: InvalidArgumentError) -> InvalidArgumentError:
    """An error about a converted request, with the name that the field has in the caller's."""
    field = TEXT_INPUT if error.field in ("text", "prompt") else parameters.callers_name(error.field)
    return InvalidArgumentError(field, error.problem)


class Answer:
    """The answer to one request: a response for each new text if it is streamed, and one at the end.

    The last response says so, how the text ended, and counts tokens. It has what was not sent before.

    Args:
        request: as it arrived.
        inference: what was read from it.
        write: sends a response to the caller.
    """

    def __init__(self, request: ModelInferRequest, inference: Inference, write: Write) -> None:
        self._request = request
        self._inference = inference
        self._write = write
        self._unsent: list[str] = [inference.prefix]

    async def take(self, response: generate_pb2.GenerateResponse) -> None:
        """Pass a response on."""
        match response.WhichOneof("event"):
            case "delta":
                self._unsent.append(response.delta.text)
                if self._inference.is_streamed and response.delta.text:
                    await self._send(self._response(is_last=False))
            case "finished":
                finished = response.finished
                last = self._response(is_last=True)
                last.parameters["finish_reason"].string_param = _FINISH_REASONS[finished.reason]
                last.parameters["num_input_tokens"].int64_param = finished.usage.num_prompt_tokens
                last.parameters["num_cached_tokens"].int64_param = finished.usage.num_cached_tokens
                last.parameters["num_output_tokens"].int64_param = finished.usage.num_output_tokens
                await self._send(last)

    async def _send(self, response: ModelInferResponse) -> None:
        add_text(response, TEXT_OUTPUT, "".join(self._unsent))
        self._unsent.clear()
        await self._write(response)

    def _response(self, *, is_last: bool) -> ModelInferResponse:
        response = ModelInferResponse(model_name=self._request.model_name, model_version=VERSION, id=self._request.id)
        response.parameters[_FINAL].bool_param = is_last
        return response
