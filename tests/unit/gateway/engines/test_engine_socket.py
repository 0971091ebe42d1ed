"""Does a gateway have a socket for every engine of a large installation, and hear all that an engine says?"""

import asyncio
import resource
import socket
from contextlib import suppress

import pytest
import zmq

from scheduler_service.gateway.engines.engine_socket import Connector, EngineSocket
from scheduler_service.gateway.exceptions import StartError
from tests.fakes.patience import wait_until


def test_a_gateway_connects_to_more_engines_than_zeromq_has_sockets_for_by_default(tmp_path):
    async def connect(count: int) -> int:
        connector = Connector("test", "model")
        listeners = [
            EngineSocket(connector, f"ipc://{tmp_path}/{number}", lambda frames: None, lambda: None, lambda: None)
            for number in range(count)
        ]
        for listener in listeners:
            listener.close()
        connector.close()
        return len(listeners)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        # Three sockets each, of 1,023.
        assert asyncio.run(connect(400)) == 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_gateway_without_sockets_says_so_and_goes_on():
    async def connect() -> list[str]:
        connector = Connector("test", "model")
        connector.context.set(zmq.MAX_SOCKETS, 2)

        def listener() -> EngineSocket:
            return EngineSocket(connector, "tcp://127.0.0.1:1", lambda frames: None, lambda: None, lambda: None)

        problems = []
        for _ in range(3):
            with pytest.raises(StartError) as caught:
                listener()
            problems.append(str(caught.value))
        connector.close()
        return problems

    expected = "no socket for the scheduler at 'tcp://127.0.0.1:1': Too many open files; raise the limit of open files"
    assert all(problem.startswith(expected) for problem in asyncio.run(connect()))


def test_the_last_words_of_an_engine_that_is_gone_are_heard():
    with zmq.Context() as engine_context:
        engine = engine_context.socket(zmq.ROUTER)
        engine.bind("tcp://127.0.0.1:*")
        address = engine.getsockopt_string(zmq.LAST_ENDPOINT)

        async def listen() -> list[bytes]:
            heard: list[bytes] = []
            is_connected, is_gone = asyncio.Event(), asyncio.Event()
            connector = Connector("test", "model")
            listener = EngineSocket(connector, address, heard.extend, is_connected.set, is_gone.set)
            await is_connected.wait()
            assert listener.send(b"hello")
            # From here on the gateway is busy with other things, until all is over.
            peer, _ = engine.recv_multipart()
            for word in (b"last", b"words"):
                engine.send_multipart((peer, word))
            engine.close(linger=-1)
            wait_for_reconnection(address)
            await is_gone.wait()
            assert not listener.send(b"are you there?")
            listener.close()
            connector.close()
            return heard

        assert asyncio.run(listen()) == [b"last", b"words"]


def wait_for_reconnection(address: str) -> None:
    """Until ZeroMQ's thread has seen that the peer is gone, and looks for another one at its address."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def has_taken_over() -> bool:
            with suppress(OSError):
                successor.bind((host, int(port)))
                return True
            return False

        wait_until(has_taken_over)
        successor.listen()
        successor.accept()[0].close()
