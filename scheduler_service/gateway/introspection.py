"""What can callers find out about the servers themselves? grpc.reflection and grpc.channelz, as their packages have it.

Their methods are called the way our own are: what callers send wrong is theirs, and nothing of it fills the log.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection, reflection_pb2

from scheduler_service.gateway import handlers
from scheduler_service.gateway.exceptions import StartError

REFLECTION_NAME: str = reflection.SERVICE_NAME


def reflection_handler(service_names: Iterable[str]) -> grpc.GenericRpcHandler:
    """Describes these services."""
    servicer = reflection.aio.ReflectionServicer(service_names)

    async def describe(requests: AsyncIterator[Message], context: handlers.Context) -> None:
        async for response in servicer.ServerReflectionInfo(requests, context):
            await context.write(response)

    method = handlers.bidirectional(reflection_pb2.ServerReflectionRequest, describe)
    return grpc.method_handlers_generic_handler(REFLECTION_NAME, {"ServerReflectionInfo": method})


def channelz_handler() -> tuple[str, grpc.GenericRpcHandler]:
    """Tells of connections, by the name that comes first.

    Raises:
        StartError: the package is missing.
    """
    try:
        from grpc_channelz.v1 import _async, channelz_pb2  # noqa: PLC0415
    except ImportError as error:
        raise StartError("--channelz needs the package grpcio-channelz: pip install grpcio-channelz") from error
    service = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
    servicer: Any = _async.ChannelzServicer()
    methods = {
        method.name: handlers.unary(message_factory.GetMessageClass(method.input_type), getattr(servicer, method.name))
        for method in service.methods
    }
    return service.full_name, grpc.method_handlers_generic_handler(service.full_name, methods)
