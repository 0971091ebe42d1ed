"""What does it cost an engine to tell its gateways of a step? The scheduler's own socket and collector, and readers in
another process, over TCP on this machine, encrypted as between pods."""

import contextlib
import io
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import zmq

from benchmarks.scaling.measure.cpu import Cpu, cpu_of, median
from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.curve import GATEWAY, secure_client
from pagewire.ipc.requests import EngineState, EngineStatus, GatewayMessage, Hello, Limits, Load, ModelInfo, Submit
from scheduler_service.bench.scheduler import make_submits
from scheduler_service.core import curve_keys
from scheduler_service.core.curve_gate import CurveGate
from scheduler_service.core.gateways import Gateways
from scheduler_service.core.outputs import OutputCollector
from scheduler_service.core.sequence import Sequence
from scheduler_service.core.sockets import Server

_SIZES = (1, 16, 64, 192)
_NUM_SEQS = 1024
_NUM_STEPS = 60
_STEP_PERIOD_S = 0.02
_PATIENCE_S = 60.0
STATUS = EngineStatus(
    EngineState.READY,
    ModelInfo("qwen3", 151_936, 40_960, (151_645,)),
    Limits(40_960, 256, 2048, 16, 37_000, 4096, 1 << 24),
    Load(200, 12, 20_000),
    "ready",
    1,
    1,
    "",
)


def measure_engine_sockets() -> dict[str, float]:
    """Microseconds of CPU time: of the scheduler's thread, and of ZeroMQ's, for one message to one gateway."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            curve_keys.main(["--dir", folder])
        steps = [_measure_steps(size, Path(folder)) for size in _SIZES]
    slope_s, _ = np.polyfit(_SIZES, [cpu.own_s for cpu in steps], 1)
    return {"engine_message_us": 1e6 * float(slope_s), "engine_io_message_us": 1e6 * steps[-1].others_s / _SIZES[-1]}


def _measure_steps(num_gateways: int, keys: Path) -> Cpu:
    """CPU time of telling so many gateways of one step of `_NUM_SEQS` sequences."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = CurveGate(context, keys)
    server: Server[GatewayMessage] = Server(
        context, "tcp://127.0.0.1:*", GatewayMessage, new_incarnation(), GATEWAY, keys
    )
    forks = multiprocessing.get_context("spawn")
    stop = forks.Event()
    reader = forks.Process(target=_read, args=(server.address, num_gateways, keys, stop), daemon=True)
    reader.start()
    try:
        gateways = Gateways(server)
        names = _greet_all(server, gateways, gate, num_gateways)
        return _deliver_steps(gateways, names)
    finally:
        stop.set()
        reader.join(_PATIENCE_S)
        server.close()
        gate.close()
        context.term()


def _greet_all(server: Server[GatewayMessage], gateways: Gateways, gate: CurveGate, num_gateways: int) -> list[bytes]:
    names: dict[bytes, None] = {}
    deadline_s = time.monotonic() + _PATIENCE_S
    while len(names) < num_gateways:
        assert time.monotonic() < deadline_s, f"{len(names)} of {num_gateways} gateways have greeted"
        gate.answer()
        for routing_id, envelope in server.receive():
            if isinstance(envelope.message, Hello):
                gateways.greet(envelope.sender, routing_id, envelope.message)
                names[envelope.sender] = None
        time.sleep(0.001)
    return list(names)


def _deliver_steps(gateways: Gateways, names: list[bytes]) -> Cpu:
    """The median of several steps, in which every sequence has a token for its gateway. Gathering the tokens is the
    scheduler's work, and is not counted."""
    submits: list[Submit] = make_submits(_NUM_SEQS, 16, 16)
    sequences = [
        Sequence.of(submit, names[index % len(names)], index, 32, frozenset()) for index, submit in enumerate(submits)
    ]
    outputs = OutputCollector()

    def deliver() -> None:
        assert not gateways.deliver(outputs.flush()), "a gateway is gone"
        # ZeroMQ's thread sends meanwhile; sleeping takes no CPU time.
        time.sleep(_STEP_PERIOD_S)

    each = []
    for _ in range(_NUM_STEPS):
        for sequence in sequences:
            stream_ids, token_ids = outputs.tokens_of(sequence.gateway)
            stream_ids.append(sequence.stream_id)
            token_ids.append(7)
        each.append(cpu_of(deliver))
    return median(each)


def _read(address: str, num_gateways: int, keys: Path, stop: Event) -> None:
    """Greet as so many gateways, and read whatever comes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    codec: Codec[GatewayMessage] = Codec(GatewayMessage)
    for _ in range(num_gateways):
        socket = context.socket(zmq.DEALER)
        secure_client(socket, address, keys, GATEWAY)
        socket.connect(address)
        socket.send(codec.encode(Hello("scaling"), new_incarnation(), ANY))
        poller.register(socket, zmq.POLLIN)
    while not stop.is_set():
        for socket, _ in poller.poll(100):
            while socket.poll(0):
                socket.recv()
    context.destroy(linger=0)
