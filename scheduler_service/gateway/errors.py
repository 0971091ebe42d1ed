"""Which status does a caller get for an exception? The one table from exceptions to codes and google.rpc details."""

import logging
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from scheduler_service.gateway import exceptions

logger = logging.getLogger(__name__)

_DOMAIN = "pagewire"
_DETAILS_KEY = "grpc-status-details-bin"
# Status messages travel in HTTP/2 headers, whose size peers limit.
_MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of exception is told to the caller. `retry_s`: come back after so many seconds; None: do not."""

    code: grpc.StatusCode
    reason: str
    retry_s: float | None = None


_KINDS: dict[type[exceptions.RequestError], _Kind] = {
    exceptions.InvalidArgumentError: _Kind(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    exceptions.NotServedError: _Kind(grpc.StatusCode.UNIMPLEMENTED, "FIELD_NOT_SERVED"),
    exceptions.UnauthenticatedError: _Kind(grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"),
    exceptions.NotAllowedError: _Kind(grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"),
    exceptions.QuotaExceededError: _Kind(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    exceptions.UnknownMethodError: _Kind(grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD"),
    exceptions.MethodNotServedError: _Kind(grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_SERVED"),
    exceptions.UnknownServiceError: _Kind(grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE"),
    exceptions.UnknownModelError: _Kind(grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    exceptions.TemplateRefusedError: _Kind(grpc.StatusCode.PERMISSION_DENIED, "TEMPLATE_REFUSED"),
    exceptions.NoChatTemplateError: _Kind(grpc.StatusCode.FAILED_PRECONDITION, "NO_CHAT_TEMPLATE"),
    exceptions.EngineUnavailableError: _Kind(grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE", retry_s=1.0),
    # Another gateway may be asked at once.
    exceptions.GatewayDrainingError: _Kind(grpc.StatusCode.UNAVAILABLE, "GATEWAY_DRAINING", retry_s=0.1),
    exceptions.EngineOverloadedError: _Kind(grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED"),
    exceptions.DeadlinePassedError: _Kind(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"),
    exceptions.StreamReplacedError: _Kind(grpc.StatusCode.ABORTED, "STREAM_REPLACED"),
    exceptions.StreamChangedError: _Kind(grpc.StatusCode.ABORTED, "STREAM_CHANGED"),
    exceptions.SequenceFailedError: _Kind(grpc.StatusCode.INTERNAL, "SEQUENCE_FAILED"),
}
_UNEXPECTED = _Kind(grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")


def to_status(error: Exception) -> status_pb2.Status:
    """Describe an exception as a status with details. One that is not a RequestError tells the caller nothing."""
    kind = _KINDS.get(type(error)) if isinstance(error, exceptions.RequestError) else None
    message = str(error) if kind else "the gateway failed on this request; its log says why"
    details = _details(error, kind or _UNEXPECTED)
    status = status_pb2.Status(code=(kind or _UNEXPECTED).code.value[0], message=_shortened(message))
    status.details.extend(_packed(detail) for detail in details)
    return status


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: Exception) -> NoReturn:
    """End the call with the status of an exception; one that nobody expected is logged with its traceback."""
    if not isinstance(error, exceptions.RequestError):
        logger.error("unexpected error in a call peer=%s", context.peer(), exc_info=error)
    status = to_status(error)
    await context.abort(
        _CODES[status.code],
        status.message,
        trailing_metadata=((_DETAILS_KEY, status.SerializeToString()),),
    )
    raise AssertionError("abort() returned")


def refusing_handler(error: exceptions.RequestError) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler of any kind of call that ends it with this error, before it reads a message."""

    async def refuse(_requests: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _details(error: Exception, kind: _Kind) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=kind.reason, domain=_DOMAIN, metadata=_metadata(error))
    details: list[Message] = [info]
    if isinstance(error, exceptions.InvalidArgumentError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(error.field), description=_shortened(error.problem)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_s = kind.retry_s
    if isinstance(error, exceptions.EngineOverloadedError | exceptions.QuotaExceededError):
        subject = error.quota if isinstance(error, exceptions.EngineOverloadedError) else f"key:{error.tenant}"
        violated = error_details_pb2.QuotaFailure.Violation(subject=subject, description=_shortened(str(error)))
        details.append(error_details_pb2.QuotaFailure(violations=[violated]))
        retry_s = error.retry_after_s
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _metadata(error: Exception) -> dict[str, str]:
    match error:
        case exceptions.InvalidArgumentError() | exceptions.NotServedError():
            return {"field": _shortened(error.field)}
        case exceptions.UnknownModelError():
            return {"model": _shortened(error.name)}
        case exceptions.UnknownServiceError():
            return {"service": _shortened(error.name)}
        case exceptions.UnknownMethodError():
            return {"method": _shortened(error.method)}
        case exceptions.QuotaExceededError():
            return {"quota": error.quota}
        case _:
            return {}


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _shortened(text: str) -> str:
    # What callers send as JSON may hold half a surrogate pair, which protobuf's strings cannot.
    text = text[: _MAX_MESSAGE_CHARS + 1].encode(errors="backslashreplace").decode()
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"
