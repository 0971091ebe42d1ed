"""Does every exception reach the caller as the right code with the right details?"""

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from scheduler_service.gateway import errors, exceptions

CASES = [
    (exceptions.InvalidArgumentError("sampling.top_p", "is 2"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    (exceptions.NotServedError("adapter"), grpc.StatusCode.UNIMPLEMENTED, "FIELD_NOT_SERVED"),
    (exceptions.UnauthenticatedError("x"), grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"),
    (exceptions.NotAllowedError("x"), grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"),
    (exceptions.QuotaExceededError("a", "q", 3, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    (exceptions.UnknownServiceError("a.B"), grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE"),
    (exceptions.UnknownMethodError("/a.B/C"), grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD"),
    (exceptions.UnknownModelError("a", "b"), grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    (exceptions.TemplateRefusedError(), grpc.StatusCode.PERMISSION_DENIED, "TEMPLATE_REFUSED"),
    (exceptions.NoChatTemplateError(), grpc.StatusCode.FAILED_PRECONDITION, "NO_CHAT_TEMPLATE"),
    (exceptions.MethodNotServedError("Embed"), grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_SERVED"),
    (exceptions.EngineUnavailableError("x"), grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE"),
    (exceptions.GatewayDrainingError(), grpc.StatusCode.UNAVAILABLE, "GATEWAY_DRAINING"),
    (exceptions.EngineOverloadedError("x", "q", 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED"),
    (exceptions.DeadlinePassedError(), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"),
    (exceptions.StreamReplacedError(), grpc.StatusCode.ABORTED, "STREAM_REPLACED"),
    (exceptions.StreamChangedError(), grpc.StatusCode.ABORTED, "STREAM_CHANGED"),
    (exceptions.SequenceFailedError("NaN"), grpc.StatusCode.INTERNAL, "SEQUENCE_FAILED"),
    (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"),
]


def details(status: status_pb2.Status) -> dict[type, object]:
    """The details by type."""
    found: dict[type, object] = {}
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.QuotaFailure,
        ):
            message = kind()
            if packed.Unpack(message):
                found[kind] = message
    assert len(found) == len(status.details)
    return found


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=lambda value: str(value))
def test_status_has_code_and_reason(error: Exception, code: grpc.StatusCode, reason: str) -> None:
    status = errors.to_status(error)
    assert status.code == code.value[0]
    info = details(status)[error_details_pb2.ErrorInfo]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason, "pagewire")


def test_every_request_error_has_a_status_of_its_own() -> None:
    assert {type(error) for error, _, _ in CASES} >= set(exceptions.RequestError.__subclasses__())


def test_text_that_is_no_unicode_is_told_nevertheless() -> None:
    status = errors.to_status(exceptions.InvalidArgumentError("\ud800", "there is no such parameter"))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "\\ud800: there is no such parameter"


def test_status_names_the_invalid_field() -> None:
    status = errors.to_status(exceptions.InvalidArgumentError("sampling.top_p", "is 2, must be at most 1"))
    request = details(status)[error_details_pb2.BadRequest]
    assert isinstance(request, error_details_pb2.BadRequest)
    (violation,) = request.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "is 2, must be at most 1")
    assert status.message == "sampling.top_p: is 2, must be at most 1"


@pytest.mark.parametrize(
    ("error", "delay_ms"),
    [
        (exceptions.EngineUnavailableError("x"), 1000),
        (exceptions.EngineOverloadedError("x", "max_waiting_requests", 2.5), 2500),
    ],
)
def test_status_says_when_to_come_back(error: exceptions.RequestError, delay_ms: int) -> None:
    retry = details(errors.to_status(error))[error_details_pb2.RetryInfo]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == delay_ms


def test_status_names_the_quota_that_is_reached() -> None:
    error = exceptions.EngineOverloadedError("9 requests wait", "max_waiting_requests", 1.0)
    quota = details(errors.to_status(error))[error_details_pb2.QuotaFailure]
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    (violation,) = quota.violations
    assert (violation.subject, violation.description) == (
        "max_waiting_requests",
        "the queue is full: 9 requests wait",
    )


def test_status_of_an_unexpected_error_tells_nothing() -> None:
    status = errors.to_status(ZeroDivisionError("secret"))
    assert status.code == code_pb2.INTERNAL
    assert b"secret" not in status.SerializeToString()


def test_status_message_fits_into_headers() -> None:
    status = errors.to_status(exceptions.InvalidArgumentError("chat", "é" * 100_000))
    assert len(status.SerializeToString()) < 4_000
