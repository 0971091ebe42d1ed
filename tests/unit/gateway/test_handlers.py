"""What becomes of a call whose caller is gone when its handler writes or fails?"""

import asyncio
import logging

import grpc
import pytest

from pagewire.v1 import generate_pb2
from scheduler_service.gateway import handlers
from scheduler_service.gateway.exceptions import DeadlinePassedError


class GoneCaller:
    """A call that gRPC has not cancelled yet though nothing can be sent any more."""

    def peer(self) -> str:
        return ""

    async def write(self, response: object) -> None:
        raise grpc.aio.InternalError("nobody reads")

    async def abort(self, code: grpc.StatusCode, message: str, trailing_metadata: object) -> None:
        raise grpc.aio.InternalError("nobody reads")


async def write(request: generate_pb2.GenerateRequest, context: handlers.Context) -> None:
    await context.write(generate_pb2.GenerateResponse())


async def fail(request: generate_pb2.GenerateRequest, context: handlers.Context) -> None:
    raise DeadlinePassedError


@pytest.mark.parametrize("method", [write, fail])
@pytest.mark.parametrize("kind", ["unary", "server_streaming"])
def test_a_caller_that_is_gone_is_no_error(caplog, method, kind) -> None:
    made = getattr(handlers, kind)(generate_pb2.GenerateRequest, method)
    handle = made.unary_unary or made.unary_stream
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        asyncio.run(handle(generate_pb2.GenerateRequest(), GoneCaller()))
    assert caplog.messages == []


def test_what_grpc_logs_of_callers_who_left_is_dropped_and_the_rest_is_not() -> None:
    keeps = handlers.CallersWhoLeft().filter

    def record(error: Exception | None) -> logging.LogRecord:
        exc_info = None if error is None else (type(error), error, None)
        return logging.LogRecord(handlers.GRPC_LOGGER, logging.ERROR, "", 0, "x", (), exc_info)

    assert not keeps(record(grpc.aio.InternalError("nobody reads")))
    assert keeps(record(ZeroDivisionError()))
    assert keeps(record(None))
