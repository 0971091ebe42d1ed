"""The gateways this scheduler knows: who they are, what they are told, and what happens when one is gone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pagewire.ipc.requests import EngineStatus, GatewayMessage, Hello
from scheduler_service.core.sockets import PeerGoneError, Server

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Gateway:
    routing_id: bytes
    hello_number: int
    session: int


class Gateways:
    """Gateways by incarnation. One is known from its Hello to its Goodbye, or until a message cannot be delivered: that
    is a session. A gateway that was forgotten and greets again gets another, so that it knows."""

    def __init__(self, server: Server[GatewayMessage]) -> None:
        self._server = server
        self._gateways: dict[bytes, _Gateway] = {}
        self._num_sessions = 0

    def __contains__(self, gateway: bytes) -> bool:
        return gateway in self._gateways

    def greet(self, gateway: bytes, routing_id: bytes, hello: Hello) -> None:
        """Remember a gateway that said hello, and where it is reached."""
        known = self._gateways.get(gateway)
        if known is None:
            logger.info("gateway connected incarnation=%s", gateway.hex())
            self._num_sessions += 1
            self._gateways[gateway] = _Gateway(routing_id, hello.number, self._num_sessions)
        elif hello.number >= known.hello_number:
            known.routing_id, known.hello_number = routing_id, hello.number

    def part(self, gateway: bytes) -> None:
        """Forget a gateway that said goodbye."""
        logger.info("gateway left incarnation=%s", gateway.hex())
        del self._gateways[gateway]

    def send(self, gateway: bytes, message: msgspec.Struct) -> bool:
        """Send to one gateway. False if it is gone: it is then forgotten, and its sequences are to be orphaned."""
        known = self._gateways.get(gateway)
        if known is None:
            return False
        if isinstance(message, EngineStatus):
            message = msgspec.structs.replace(message, session=known.session)
        try:
            self._server.send(known.routing_id, message, gateway)
        except PeerGoneError as error:
            logger.warning("gateway lost incarnation=%s error=%s", gateway.hex(), error)
            del self._gateways[gateway]
            return False
        return True

    def broadcast(self, status: EngineStatus) -> list[bytes]:
        """Tell every gateway the state of the engine; returns those that turned out to be gone."""
        return [gateway for gateway in list(self._gateways) if not self.send(gateway, status)]

    def deliver(self, outputs: Sequence[tuple[bytes, msgspec.Struct]]) -> list[bytes]:
        """Send each gateway its news; returns those that turned out to be gone."""
        return [gateway for gateway, message in outputs if not self.send(gateway, message)]
