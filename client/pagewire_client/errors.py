"""What can go wrong, for a caller? One exception hierarchy; RPC failures carry code, message and details."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class PagewireError(Exception):
    """Anything this library raises on purpose."""


class ServiceStartError(PagewireError):
    """A private local service did not start; the message says why."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A request field that was refused, and why."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What the server said beside code and message. `reason` is a stable name for programs."""

    violations: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def first_error(failures: BaseException) -> BaseException:
    """The first of the errors that tasks ended with together."""
    while isinstance(failures, BaseExceptionGroup):
        failures = failures.exceptions[0]
    return failures


class RequestError(PagewireError):
    """A call ended with a gRPC status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details or ErrorDetails()

    def __str__(self) -> str:
        fields = "; ".join(f"{v.field}: {v.description}" for v in self.details.violations)
        extra = f" ({fields})" if fields and fields not in self.message else ""
        return f"{self.code.name}: {self.message}{extra}"


class InvalidArgumentError(RequestError, ValueError):
    """The request is wrong and would be wrong again; `details.violations` names the fields."""


class NotFoundError(RequestError, LookupError):
    """The model (or another named thing) does not exist."""


class UnimplementedError(RequestError, NotImplementedError):
    """The request uses a field that this server does not serve."""


class ResourceExhaustedError(RequestError):
    """The server has no room now; `details.retry_delay_s` may say when to come back."""


class UnavailableError(RequestError, ConnectionError):
    """The server could not be reached, or cannot run requests now."""


class DeadlineExceededError(RequestError, TimeoutError):
    """The call's timeout passed first."""


class CancelledError(RequestError):
    """The call was cancelled, by this side or the other."""


class AuthenticationError(RequestError, PermissionError):
    """The caller is unknown (UNAUTHENTICATED) or not allowed (PERMISSION_DENIED)."""


class InternalError(RequestError):
    """The server failed; the request alone may be at fault."""


_CLASSES: dict[grpc.StatusCode, type[RequestError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def from_rpc_error(error: grpc.RpcError) -> RequestError:
    """Translate what grpc raised, sync or aio."""
    call: Any = error
    code: grpc.StatusCode = call.code() or grpc.StatusCode.UNKNOWN
    return make_error(code, call.details() or "", _parse_details(call.trailing_metadata() or ()))


def make_error(code: grpc.StatusCode, message: str, details: ErrorDetails | None = None) -> RequestError:
    """Build the exception class that belongs to a status code."""
    return _CLASSES.get(code, RequestError)(code, message, details)


def _parse_details(metadata: Iterable[tuple[str, str | bytes]]) -> ErrorDetails:
    packed = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return ErrorDetails()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    info = error_details_pb2.ErrorInfo()
    retry_delay_s = None
    for detail in status_pb2.Status.FromString(packed).details:
        detail.Unpack(bad_request)
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
    return ErrorDetails(
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        retry_delay_s=retry_delay_s,
        reason=info.reason,
        metadata=dict(info.metadata),
    )
