"""Which gateways a scheduler knows, and where: over real sockets that come and go."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pagewire.ipc import curve
from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.requests import EngineState, EngineStatus, GatewayMessage, Hello, Load, SchedulerMessage
from scheduler_service.core.gateways import Gateways
from scheduler_service.core.sockets import Server
from tests.fakes.patience import PATIENCE_S

GATEWAY = new_incarnation()
STATUS = EngineStatus(EngineState.READY, None, None, Load(0, 0, 0), "", 0, 0, "")

Socket = zmq.Socket[bytes]


@pytest.fixture
def context() -> Iterator["zmq.Context[Socket]"]:
    running: zmq.Context[Socket] = zmq.Context()
    yield running
    running.destroy(linger=0)


@pytest.fixture
def server(context: "zmq.Context[Socket]", tmp_path: Path) -> Server[GatewayMessage]:
    return Server(context, f"ipc://{tmp_path}/requests", GatewayMessage, new_incarnation(), curve.GATEWAY)


@pytest.fixture
def gateways(server: Server[GatewayMessage]) -> Gateways:
    return Gateways(server)


class Connection:
    """One of a gateway's connections, before or after its network was cut."""

    def __init__(self, context: "zmq.Context[Socket]", server: Server[GatewayMessage]) -> None:
        self._codec: Codec[SchedulerMessage] = Codec(SchedulerMessage)
        self._server = server
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect(server.address)

    def greet(self, gateways: Gateways, number: int) -> None:
        """Say hello; returns once the scheduler has heard it."""
        self._socket.send(self._codec.encode(Hello("test", number), GATEWAY, ANY))
        assert self._server.socket.poll(1000 * PATIENCE_S)
        for routing_id, envelope in self._server.receive():
            assert isinstance(envelope.message, Hello)
            gateways.greet(envelope.sender, routing_id, envelope.message)

    def session(self) -> int:
        """Of the status that comes next."""
        assert self._socket.poll(1000 * PATIENCE_S)
        message = self._codec.decode(self._socket.recv()).message
        assert isinstance(message, EngineStatus)
        return message.session

    def close(self) -> None:
        """Close; returns once the scheduler has noticed."""
        monitor = self._server.watch_for_losses()
        self._socket.close(linger=0)
        assert monitor.poll(1000 * PATIENCE_S)


def test_a_hello_that_is_late_says_nothing_of_where_the_gateway_is(
    context: "zmq.Context[Socket]", server: Server[GatewayMessage], gateways: Gateways
) -> None:
    old, new = Connection(context, server), Connection(context, server)
    new.greet(gateways, 2)
    old.greet(gateways, 1)
    old.close()
    assert gateways.broadcast(STATUS) == []
    session = new.session()
    newest = Connection(context, server)
    newest.greet(gateways, 3)
    assert gateways.broadcast(STATUS) == []
    assert newest.session() == session


def test_a_gateway_that_was_forgotten_gets_another_session(
    context: "zmq.Context[Socket]", server: Server[GatewayMessage], gateways: Gateways
) -> None:
    old = Connection(context, server)
    old.greet(gateways, 1)
    gateways.broadcast(STATUS)
    session = old.session()
    old.close()
    while not gateways.broadcast(STATUS):
        pass
    assert GATEWAY not in gateways
    new = Connection(context, server)
    new.greet(gateways, 2)
    for _ in range(2):
        assert gateways.send(GATEWAY, STATUS)
        assert new.session() != session
