"""The gateways this scheduler knows: who they are, what they are told, and what happens when one is gone."""

import logging
from collections.abc import Sequence

import msgspec

from pagewire.ipc.requests import EngineStatus, GatewayMessage
from scheduler_service.core.sockets import PeerGoneError, Server

logger = logging.getLogger(__name__)


class Gateways:
    """Gateways by incarnation. One is known from its Hello to its Goodbye, or until a message cannot be delivered."""

    def __init__(self, server: Server[GatewayMessage]) -> None:
        self._server = server
        self._routing_ids: dict[bytes, bytes] = {}

    def __contains__(self, gateway: bytes) -> bool:
        return gateway in self._routing_ids

    def greet(self, gateway: bytes, routing_id: bytes) -> None:
        """Remember a gateway that said hello, and where it is reached."""
        if gateway not in self._routing_ids:
            logger.info("gateway connected incarnation=%s", gateway.hex())
        self._routing_ids[gateway] = routing_id

    def part(self, gateway: bytes) -> None:
        """Forget a gateway that said goodbye."""
        logger.info("gateway left incarnation=%s", gateway.hex())
        del self._routing_ids[gateway]

    def send(self, gateway: bytes, message: msgspec.Struct) -> bool:
        """Send to one gateway. False if it is gone: it is then forgotten, and its sequences should end."""
        routing_id = self._routing_ids.get(gateway)
        if routing_id is None:
            return False
        try:
            self._server.send(routing_id, message, gateway)
        except PeerGoneError as error:
            logger.warning("gateway lost incarnation=%s error=%s", gateway.hex(), error)
            del self._routing_ids[gateway]
            return False
        return True

    def broadcast(self, status: EngineStatus) -> list[bytes]:
        """Tell every gateway the state of the engine; returns those that turned out to be gone."""
        return [gateway for gateway in list(self._routing_ids) if not self.send(gateway, status)]

    def deliver(self, outputs: Sequence[tuple[bytes, msgspec.Struct]]) -> list[bytes]:
        """Send each gateway its news; returns those that turned out to be gone."""
        return [gateway for gateway, message in outputs if not self.send(gateway, message)]
