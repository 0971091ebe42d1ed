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
