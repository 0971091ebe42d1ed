"""What may a gateway answer to a call, however hostile? A status that blames whoever is to blame."""

import asyncio
from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError

from pagewire.v1 import generate_pb2
from tests.hostile.grpc_cases import Call

_GENERATE = "/pagewire.v1.InferenceService/Generate"
# Whoever gets one of these is told that the fault is the server's, or nobody's.
_FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
# What the caller's own library says when it still sends while the call has ended.
_CALLERS_OWN = "Internal error from Core"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


class GrpcSender:
    """Makes calls over a few connections.

    Args:
        address: of the gateway.
        num_connections: to spread them over.
    """

    def __init__(self, address: str, num_connections: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, list(_OPTIONS)) for _ in range(num_connections)]
        self._next = 0

    async def send(self, call: Call) -> tuple[str, str]:
        """Make a call; gives how it ended, and what is wrong with that, if anything is."""
        self._next = (self._next + 1) % len(self._channels)
        channel = self._channels[self._next]
        options = {"timeout": call.timeout_s, "metadata": call.metadata}
        if len(call.messages) == 1:
            made = channel.unary_stream(call.path)(call.messages[0], **options)
        else:
            made = channel.stream_stream(call.path)(iter(call.messages), **options)
        canceller = None
        if call.cancel_after_s is not None:
            canceller = asyncio.get_running_loop().call_later(call.cancel_after_s, made.cancel)
        responses = []
        try:
            async for response in made:
                responses.append(response)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            if canceller is not None:
                canceller.cancel()
        try:
            code, details = await made.code(), await made.details()
        except asyncio.CancelledError:
            code, details = grpc.StatusCode.CANCELLED, ""
        if details == _CALLERS_OWN:
            return "no status", ""
        return code.name, "; ".join(_complaints(call, responses, code, details or ""))

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close()


def _complaints(call: Call, responses: list[bytes], code: grpc.StatusCode, details: str) -> Iterator[str]:
    if code in _FAULTS:
        yield f"{code.name}: {details}"
    if code is not grpc.StatusCode.OK:
        return
    if not call.is_streaming and len(responses) != 1:
        yield f"a unary call gave {len(responses)} responses"
    if call.path == _GENERATE:
        try:
            events = [generate_pb2.GenerateResponse.FromString(data).WhichOneof("event") for data in responses]
        except DecodeError as error:
            yield f"an undecodable response: {error}"
            return
        if events[:1] != ["accepted"] or events[-1] != "finished" or set(events[1:-1]) - {"delta"}:
            yield f"OK, but the events are {events[:3]} ... {events[-3:]}"
