"""How do gRPC calls reach plain async methods? Decodes requests, and turns every exception into a status.

gRPC's own deserializer answers undecodable bytes with INTERNAL or UNKNOWN; here they are the caller's INVALID_ARGUMENT.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from scheduler_service.gateway.errors import abort
from scheduler_service.gateway.exceptions import InvalidArgumentError

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response")
Write = Callable[[Any], Awaitable[object]]

GRPC_LOGGER = "grpc._cython.cygrpc"

# Of a write to a caller who is gone. gRPC cancels the handler for that, but not always before it writes.
CallerGoneError = grpc.aio.InternalError


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Bytes that are not the message they should be."""

    error: InvalidArgumentError


def unary(request_type: type[Request], method: Callable[[Request, Context], Awaitable[Message]]) -> Any:
    """Handle calls with one response."""

    async def handle(request: Request | _Undecodable, context: Context) -> Message:
        return await _answer(lambda: method(_decoded(request), context), context)

    return grpc.unary_unary_rpc_method_handler(handle, _deserializer(request_type), _serialize)


def server_streaming(request_type: type[Request], method: Callable[[Request, Context], Awaitable[None]]) -> Any:
    """Handle calls whose responses the method writes to the context."""

    async def handle(request: Request | _Undecodable, context: Context) -> None:
        await _answer(lambda: method(_decoded(request), context), context)

    return grpc.unary_stream_rpc_method_handler(handle, _deserializer(request_type), _serialize)


def bidirectional(
    request_type: type[Request], method: Callable[[AsyncIterator[Request], Context], Awaitable[None]]
) -> Any:
    """Handle calls of many requests, whose responses the method writes to the context."""

    async def handle(requests: AsyncIterator[Request | _Undecodable], context: Context) -> None:
        await _answer(lambda: method((_decoded(request) async for request in requests), context), context)

    return grpc.stream_stream_rpc_method_handler(handle, _deserializer(request_type), _serialize)


async def _answer(call: Callable[[], Awaitable[Response]], context: Context) -> Response:
    try:
        try:
            return await call()
        except CallerGoneError:
            raise
        except Exception as error:
            await abort(context, error)
    except CallerGoneError as error:
        raise asyncio.CancelledError from error


class CallersWhoLeft(logging.Filter):
    """Drops what gRPC logs, with a traceback, when a caller leaves while a response is on its way."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep a record."""
        return record.exc_info is None or not isinstance(record.exc_info[1], CallerGoneError)


def _decoded(request: Request | _Undecodable) -> Request:
    if isinstance(request, _Undecodable):
        raise request.error
    return request


def _deserializer(request_type: type[Request]) -> Callable[[bytes], Request | _Undecodable]:
    def deserialize(data: bytes) -> Request | _Undecodable:
        try:
            return request_type.FromString(data)
        except DecodeError as error:
            problem = f"the request is not a valid {request_type.DESCRIPTOR.name} (are all strings UTF-8?): {error}"
            return _Undecodable(InvalidArgumentError("", problem))

    return deserialize


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
