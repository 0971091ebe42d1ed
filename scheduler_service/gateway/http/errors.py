"""What does an HTTP caller get for an exception? The one table from exceptions to statuses and OpenAI's errors."""

import logging
import math
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from scheduler_service.gateway import exceptions

logger = logging.getLogger(__name__)


class HttpError(Exception):
    """Something is wrong with the HTTP request itself."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of exception is told. `retry_s`: come back after so many seconds; None: do not."""

    status: HTTPStatus
    code: str
    retry_s: float | None = None


_KINDS: dict[type[exceptions.RequestError], _Kind] = {
    exceptions.InvalidArgumentError: _Kind(HTTPStatus.BAD_REQUEST, "invalid_value"),
    exceptions.NotServedError: _Kind(HTTPStatus.BAD_REQUEST, "unsupported_parameter"),
    exceptions.UnknownMethodError: _Kind(HTTPStatus.NOT_IMPLEMENTED, "unknown_method"),
    exceptions.MethodNotServedError: _Kind(HTTPStatus.NOT_IMPLEMENTED, "method_not_served"),
    exceptions.UnknownServiceError: _Kind(HTTPStatus.NOT_FOUND, "unknown_service"),
    exceptions.UnknownModelError: _Kind(HTTPStatus.NOT_FOUND, "model_not_found"),
    exceptions.UnauthenticatedError: _Kind(HTTPStatus.UNAUTHORIZED, "invalid_api_key"),
    exceptions.NotAllowedError: _Kind(HTTPStatus.FORBIDDEN, "not_allowed"),
    exceptions.QuotaExceededError: _Kind(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"),
    exceptions.TemplateRefusedError: _Kind(HTTPStatus.FORBIDDEN, "template_refused"),
    exceptions.NoChatTemplateError: _Kind(HTTPStatus.BAD_REQUEST, "no_chat_template"),
    exceptions.EngineUnavailableError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "engine_unavailable", retry_s=1.0),
    exceptions.GatewayDrainingError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "gateway_draining", retry_s=0.1),
    exceptions.EngineOverloadedError: _Kind(HTTPStatus.TOO_MANY_REQUESTS, "engine_overloaded"),
    exceptions.DeadlinePassedError: _Kind(HTTPStatus.GATEWAY_TIMEOUT, "deadline_passed"),
    exceptions.StreamReplacedError: _Kind(HTTPStatus.CONFLICT, "stream_replaced"),
    exceptions.StreamChangedError: _Kind(HTTPStatus.CONFLICT, "stream_changed"),
    exceptions.SequenceFailedError: _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "sequence_failed"),
}
_UNEXPECTED_MESSAGE = "the gateway failed on this request; its log says why"
# Messages may quote what callers sent.
_MAX_MESSAGE_CHARS = 500
_UNEXPECTED = _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error")
# Of OpenAI's API; every other status below 500 is an invalid_request_error.
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def error_body(status: HTTPStatus, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The body of an answer that says what went wrong."""
    kind = _TYPES.get(status, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(error: Exception) -> bytes:
    """The same for an error in the middle of a stream. One that is not a RequestError tells the caller nothing."""
    if isinstance(error, HttpError):
        return error_body(error.status, str(error))
    kind = _kind(error)
    return error_body(kind.status, _message(error), param=_param(error), code=kind.code)


def error_response(error: Exception) -> Response:
    """The answer for an exception."""
    status = error.status if isinstance(error, HttpError) else _kind(error).status
    return Response(error_event(error), status.value, _retry_headers(error), "application/json")


def note_unexpected(error: Exception) -> None:
    """Log an exception that tells of a fault of the gateway, with its traceback."""
    if not isinstance(error, (exceptions.RequestError, HttpError)):
        logger.error("unexpected error in an HTTP request", exc_info=error)


def _kind(error: Exception) -> _Kind:
    return _KINDS.get(type(error), _UNEXPECTED) if isinstance(error, exceptions.RequestError) else _UNEXPECTED


def _param(error: Exception) -> str | None:
    match error:
        case exceptions.InvalidArgumentError() | exceptions.NotServedError():
            return error.field or None
        case exceptions.UnknownModelError():
            return "model"
        case _:
            return None


def _message(error: Exception) -> str:
    text = str(error) if isinstance(error, exceptions.RequestError) else _UNEXPECTED_MESSAGE
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"


def _retry_headers(error: Exception) -> dict[str, str]:
    if isinstance(error, exceptions.EngineOverloadedError | exceptions.QuotaExceededError):
        retry_s: float | None = error.retry_after_s
    else:
        retry_s = _kind(error).retry_s
    if retry_s is None:
        return {}
    return {"Retry-After": str(math.ceil(retry_s)), "Retry-After-Ms": str(round(retry_s * 1000))}
