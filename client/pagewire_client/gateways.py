"""Which gateway takes the next call? Those of one service in turn, so that a retry goes to another."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from pagewire.v1 import inference_pb2_grpc

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)
Metadata = tuple[tuple[str, str], ...]
# gRPC's own lists of addresses, which have commas of their own.
_LIST_SCHEMES = ("ipv4:", "ipv6:")


class Gateways(Generic[Channel]):
    """Connections to one gateway or several, which serve the same.

    Args:
        address: one gRPC target, or several with commas between them.
        open_channel: connects to one.
        metadata: sent with every call.
    """

    def __init__(self, address: str, open_channel: Callable[[str], Channel], metadata: Metadata = ()) -> None:
        self.channels: list[Channel] = [open_channel(target) for target in split_addresses(address)]
        self._stubs: list[Any] = [_Stub(channel, metadata) for channel in self.channels]
        self._turns = itertools.count(random.randrange(len(self._stubs)))  # noqa: S311

    def turns(self) -> Iterator[Any]:
        """Stubs for the attempts of one call, without end: never one twice in a row if there is another.

        Calls share the turns, so without this care a call that fails together with many others could find its own
        gateway's turn again.
        """
        last = None
        for turn in self._turns:
            stub = self._stubs[turn % len(self._stubs)]
            last = self._stubs[(turn + 1) % len(self._stubs)] if stub is last else stub
            yield last


def split_addresses(address: str) -> list[str]:
    """The targets in "HOST:PORT,HOST:PORT"."""
    if address.startswith(_LIST_SCHEMES):
        return [address]
    return [target for part in address.split(",") if (target := part.strip())] or [address]


class _Stub:
    """The methods of a gateway; whoever prints them does not see the metadata, which may hold a key."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: Metadata) -> None:
        for name, method in vars(inference_pb2_grpc.InferenceServiceStub(channel)).items():
            setattr(self, name, _calling(method, metadata))


def _calling(method: Any, metadata: Metadata) -> Callable[..., Any]:
    def call(request: object, timeout: float | None) -> Any:
        return method(request, timeout=timeout, metadata=metadata)

    return call
