"""What does each connected engine cost a gateway, and each message? The gateway's own sockets, and engines that are only
sockets, in another process."""

import asyncio
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import zmq

from benchmarks.scaling.measure.cpu import Cpu
from benchmarks.scaling.measure.engine_sockets import STATUS
from pagewire.ipc.codec import new_incarnation
from pagewire.ipc.requests import EngineState, GatewayMessage, Hello, Located, Rejected, StepTokens
from scheduler_service.core.sockets import Server
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.engines.engine_socket import Connector, EngineSocket
from scheduler_service.gateway.engines.recovery import RecoveryCounts
from scheduler_service.gateway.stream import Stream

_NUM_ENGINES = 128
_IDLE_S = 6.0
_BURST_STEPS = 150
_STEPS_PER_S = 20.0
_STATUS_PERIOD_S = 1.0
_PATIENCE_S = 60.0


class _NoKeeper:
    """Streams there are none."""

    def engine_changed(self, engine: Engine) -> None:
        """Nobody asks."""

    def engine_lost(self, engine: Engine, streams: list[Stream]) -> None:
        """Nor here."""

    def stream_refused(self, engine: Engine, stream: Stream, rejected: Rejected) -> None:
        """Nor here."""

    def request_located(self, engine: Engine, located: Located) -> None:
        """Nor here."""


def measure_gateway_sockets() -> dict[str, float]:
    """Of each engine: file descriptors, threads, KiB, microseconds of CPU time a second; and microseconds a message."""
    forks = multiprocessing.get_context("spawn")
    ours, theirs = forks.Pipe()
    engines = forks.Process(target=_run_engines, args=(theirs, _NUM_ENGINES), daemon=True)
    engines.start()
    try:
        return asyncio.run(_measure(ours, ours.recv()))
    finally:
        engines.kill()


def most_engines() -> int:
    """How many engines a gateway can connect to before ZeroMQ refuses another socket, as far as 4,096."""
    return asyncio.run(_connect_all(4096))


async def _connect_all(limit: int) -> int:
    connector = Connector("scaling")
    sockets: list[EngineSocket] = []
    try:
        for number in range(limit):
            address = f"ipc:///nowhere/{number}"
            sockets.append(EngineSocket(connector, address, lambda frames: None, lambda: None, lambda: None))
    except zmq.ZMQError:
        return len(sockets)
    finally:
        for socket in sockets:
            socket.close()
        connector.context.destroy(linger=0)
    return limit


async def _measure(pipe: Connection, addresses: list[str]) -> dict[str, float]:
    process = psutil.Process()
    connector = Connector("scaling")
    before = process.num_fds(), process.num_threads(), process.memory_info().rss
    engines = [Engine(address, connector, _NoKeeper(), RecoveryCounts()) for address in addresses]
    deadline_s = time.monotonic() + _PATIENCE_S
    while not all(engine.status.state is EngineState.READY for engine in engines):
        assert time.monotonic() < deadline_s, "the engines do not answer"
        await asyncio.sleep(0.05)
    after = process.num_fds(), process.num_threads(), process.memory_info().rss
    idle, idle_s = await _cpu_during(_IDLE_S)
    pipe.send(_BURST_STEPS)
    steps_s = _BURST_STEPS / _STEPS_PER_S
    busy, busy_s = await _cpu_during(steps_s + 1.0)
    num_frames = _BURST_STEPS * len(engines)
    num_engines = len(engines)
    own_us = 1e6 * (busy.own_s - idle.own_s / idle_s * busy_s) / num_frames
    io_us = 1e6 * (busy.others_s - idle.others_s / idle_s * busy_s) / num_frames
    return {
        "gateway_engine_fds": (after[0] - before[0]) / num_engines,
        "gateway_engine_threads": (after[1] - before[1]) / num_engines,
        "gateway_engine_kib": (after[2] - before[2]) / num_engines / 1024,
        "gateway_engine_idle_us": 1e6 * idle.own_s / idle_s / num_engines,
        "gateway_engine_idle_io_us": 1e6 * idle.others_s / idle_s / num_engines,
        "gateway_message_us": own_us,
        "gateway_io_message_us": io_us,
    }


async def _cpu_during(seconds: float) -> tuple[Cpu, float]:
    """CPU time of this process meanwhile, and how long it really was."""
    began_s, process_s, thread_s = time.monotonic(), time.process_time(), time.thread_time()
    await asyncio.sleep(seconds)
    own_s = time.thread_time() - thread_s
    return Cpu(own_s, time.process_time() - process_s - own_s), time.monotonic() - began_s


def _run_engines(pipe: Connection, num_engines: int) -> None:
    """Answer greetings and tell the status every second; when told a number, send so many steps of one token."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * num_engines)
    names = [new_incarnation() for _ in range(num_engines)]
    servers: list[Server[GatewayMessage]] = [
        Server(context, "tcp://127.0.0.1:*", GatewayMessage, name, "gateway") for name in names
    ]
    pipe.send([server.address for server in servers])
    peers: dict[int, tuple[bytes, bytes]] = {}
    step = StepTokens((1).to_bytes(4, "little"), (7).to_bytes(4, "little"), [])
    num_steps, next_step_s = 0, 0.0
    status_due_s = [time.monotonic() + _STATUS_PERIOD_S * number / num_engines for number in range(num_engines)]
    while Path(f"/proc/{os.getppid()}").exists():
        if pipe.poll():
            num_steps, next_step_s = pipe.recv(), time.monotonic()
        now_s = time.monotonic()
        is_step_due = num_steps > 0 and now_s >= next_step_s
        for number, server in enumerate(servers):
            for routing_id, envelope in server.receive():
                if isinstance(envelope.message, Hello):
                    peers[number] = routing_id, envelope.sender
                    server.send(routing_id, STATUS, envelope.sender)
            if number in peers and now_s >= status_due_s[number]:
                status_due_s[number] += _STATUS_PERIOD_S
                server.send(peers[number][0], STATUS, peers[number][1])
            if number in peers and is_step_due:
                server.send(peers[number][0], step, peers[number][1])
        if is_step_due:
            num_steps, next_step_s = num_steps - 1, next_step_s + 1 / _STEPS_PER_S
        time.sleep(0.002)
