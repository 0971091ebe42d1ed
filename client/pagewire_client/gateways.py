"""Which gateway takes the next call? Those of one service in turn, so that a retry goes to another."""

import itertools
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from pagewire.v1 import inference_pb2_grpc

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)
# gRPC's own lists of addresses, which have commas of their own.
_LIST_SCHEMES = ("ipv4:", "ipv6:")


class Gateways(Generic[Channel]):
    """Connections to one gateway or several, which serve the same.

    Args:
        address: one gRPC target, or several with commas between them.
        open_channel: connects to one.
    """

    def __init__(self, address: str, open_channel: Callable[[str], Channel]) -> None:
        self.channels: list[Channel] = [open_channel(target) for target in split_addresses(address)]
        self._stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self.channels]
        self._turns = itertools.count(random.randrange(len(self._stubs)))  # noqa: S311

    def next_stub(self, besides: Any = None) -> Any:
        """The one whose turn it is; another if that is the one given, unless there is only one."""
        turn = next(self._turns)
        stub = self._stubs[turn % len(self._stubs)]
        return self._stubs[(turn + 1) % len(self._stubs)] if stub is besides else stub

    def route(self) -> "Route":
        """For the attempts of one request."""
        return Route(self.next_stub)


class Route:
    """Where the attempts of one request go: to the gateway whose turn it is, then each to another than the last.

    Turns alone would not do: while many requests are tried again, each would meet the gateway that failed by chance.
    """

    def __init__(self, next_stub: Callable[[Any], Any]) -> None:
        self._next_stub = next_stub
        self._last: Any = None

    def next_stub(self) -> Any:
        """For the next attempt."""
        self._last = self._next_stub(self._last)
        return self._last


def split_addresses(address: str) -> list[str]:
    """The targets in "HOST:PORT,HOST:PORT"."""
    if address.startswith(_LIST_SCHEMES):
        return [address]
    return [target for part in address.split(",") if (target := part.strip())] or [address]
