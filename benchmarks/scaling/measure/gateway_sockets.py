"""What does each connected engine cost a gateway, and each message? The gateway's own pool of engines, and engines that
are only sockets, in another process."""

import asyncio
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import psutil
import zmq

from benchmarks.scaling.measure.cpu import Cpu
from benchmarks.scaling.measure.engine_sockets import STATUS
from pagewire.ipc.cache_events import CacheEvents, WatchCache
from pagewire.ipc.codec import new_incarnation
from pagewire.ipc.requests import EngineState, GatewayMessage, Hello, StepTokens
from scheduler_service.core.sockets import Server
from scheduler_service.gateway.engines.chooser import Chooser
from scheduler_service.gateway.engines.engine_socket import Connector
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

_NUM_ENGINES = 256
_IDLE_S = 5.0
_BURST_STEPS = 100
_STEPS_PER_S = 20.0
_STATUS_PERIOD_S = 1.0
_PATIENCE_S = 60.0


def measure_gateway_sockets() -> dict[str, float]:
    """Of each engine: file descriptors, KiB, microseconds of CPU time a second; and microseconds a message."""
    most = _with_engines(_NUM_ENGINES)
    return {
        "gateway_engine_fds": most["fds"],
        "gateway_engine_kib": most["kib"],
        "gateway_engine_idle_us": most["idle_us"],
        "gateway_message_us": most["message_us"],
        "gateway_io_message_us": most["io_message_us"],
    }


def _with_engines(count: int) -> dict[str, float]:
    forks = multiprocessing.get_context("spawn")
    ours, theirs = forks.Pipe()
    engines = forks.Process(target=_run_engines, args=(theirs, count), daemon=True)
    engines.start()
    try:
        return asyncio.run(_measure(ours, ours.recv()))
    finally:
        engines.kill()
        engines.join()


async def _measure(pipe: Connection, addresses: list[str]) -> dict[str, float]:
    process = psutil.Process()
    before = process.num_fds(), process.memory_info().rss
    connector = Connector("scaling", "model")
    # There are no streams, so that nothing is tokenized.
    pool = EnginePool(addresses, connector, cast(Tokenizer, None), lambda: None, Chooser())
    deadline_s = time.monotonic() + _PATIENCE_S
    while not all(engine.status.state is EngineState.READY for engine in pool.engines):
        assert time.monotonic() < deadline_s, "the engines do not answer"
        await asyncio.sleep(0.05)
    after = process.num_fds(), process.memory_info().rss
    idle, idle_s = await _cpu_during(_IDLE_S)
    pipe.send(_BURST_STEPS)
    busy, busy_s = await _cpu_during(_BURST_STEPS / _STEPS_PER_S + 1.0)
    num_messages = _BURST_STEPS * len(addresses)
    pool.shut_down()
    connector.close()
    return {
        "fds": (after[0] - before[0]) / len(addresses),
        "kib": (after[1] - before[1]) / len(addresses) / 1024,
        "idle_us": 1e6 * idle.own_s / idle_s / len(addresses),
        "message_us": 1e6 * (busy.own_s - idle.own_s / idle_s * busy_s) / num_messages,
        "io_message_us": 1e6 * (busy.others_s - idle.others_s / idle_s * busy_s) / num_messages,
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
    servers: list[Server[GatewayMessage]] = [
        Server(context, "tcp://127.0.0.1:*", GatewayMessage, new_incarnation(), "gateway", None)
        for _ in range(num_engines)
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
                elif isinstance(envelope.message, WatchCache):
                    server.send(routing_id, CacheEvents(1, True, []), envelope.sender)
            if number in peers and now_s >= status_due_s[number]:
                status_due_s[number] += _STATUS_PERIOD_S
                server.send(peers[number][0], STATUS, peers[number][1])
            if number in peers and is_step_due:
                server.send(peers[number][0], step, peers[number][1])
        if is_step_due:
            num_steps, next_step_s = num_steps - 1, next_step_s + 1 / _STEPS_PER_S
        time.sleep(0.002)
