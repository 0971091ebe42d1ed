"""How many tokens a second does one gateway process stream? Real gRPC clients, a fake scheduler, nothing else.

The scheduler process sends one step message with a token for every stream, at a fixed step rate; client processes read
the streams. Lag is from the moment a step was sent to the moment a client had its token. CPU time is the gateway's.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from array import array
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import grpc
import zmq
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.requests import (
    Ended,
    EndReason,
    EngineState,
    EngineStatus,
    GatewayMessage,
    Hello,
    Limits,
    Load,
    ModelInfo,
    StepTokens,
    Submit,
)
from pagewire.v1 import generate_pb2, inference_pb2_grpc
from scheduler_service.supervisor.dummy_model import write_dummy

VOCAB = 256
STREAMS_PER_CHANNEL = 32

# What a client measured: messages received, the lag of every token in seconds, and when the last one came.
Measured = tuple[int, "array[float]", float]


def run_scheduler(
    address: str, num_streams: int, num_tokens: int, step_rate: float, step_times: "array[float]"
) -> None:
    """Wait for all streams, then send a step at a time. `step_times` is shared: when each step was sent."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.SNDHWM, 0)
    router.bind(address)
    codec: Codec[GatewayMessage] = Codec(GatewayMessage)
    incarnation = new_incarnation()
    model = ModelInfo("fake", VOCAB, 1 << 20, ())
    status = EngineStatus(
        EngineState.READY, model, Limits(1 << 20, 512, 8192, 16, 1 << 20), Load(0, 0, 0), "", 0, 0, ""
    )
    stream_ids = array("I")
    while len(stream_ids) < num_streams:
        peer, frame = router.recv_multipart()
        envelope = codec.decode(frame)
        gateway = envelope.sender
        if isinstance(envelope.message, Hello):
            router.send_multipart([peer, codec.encode(status, incarnation, gateway)])
        elif isinstance(envelope.message, Submit):
            stream_ids.append(envelope.message.stream_id)
            accepted = StepTokens(b"", b"", [], accepted=stream_ids[-1:].tobytes())
            router.send_multipart([peer, codec.encode(accepted, incarnation, gateway)])
    time.sleep(0.5)
    for step in range(num_tokens):
        if step > 0:
            time.sleep(max(0.0, step_times[0] + step / step_rate - time.monotonic()))
        token_ids = array("i", [65 + step % 26]) * num_streams
        is_last = step == num_tokens - 1
        ended = [Ended(stream_id, EndReason.LENGTH, None, 0, "") for stream_id in stream_ids] if is_last else []
        frame = codec.encode(StepTokens(stream_ids.tobytes(), token_ids.tobytes(), ended), incarnation, gateway)
        step_times[step] = time.monotonic()
        router.send_multipart([peer, frame])
    time.sleep(60)


def run_clients(
    address: str, num_streams: int, num_tokens: int, step_times: "array[float]", results: "Queue[Measured]"
) -> None:
    """Read streams in this process until they end."""
    results.put(asyncio.run(_read_streams(address, num_streams, num_tokens, step_times)))


async def _read_streams(address: str, num_streams: int, num_tokens: int, step_times: "array[float]") -> Measured:
    options = [("grpc.use_local_subchannel_pool", 1)]
    num_channels = -(-num_streams // STREAMS_PER_CHANNEL)
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(num_channels)]
    stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    request = generate_pb2.GenerateRequest(
        token_ids=generate_pb2.TokenIds(ids=[65] * 16), stopping=generate_pb2.StopConditions(max_tokens=num_tokens)
    )
    lags = array("d")

    async def read(stub: Any) -> int:
        num_messages = position = 0
        async for event in stub.Generate(request, wait_for_ready=True):
            num_messages += 1
            now = time.monotonic()
            for _ in event.delta.token_ids:
                lags.append(now - step_times[position])
                position += 1
        assert position == num_tokens, f"{position} of {num_tokens} tokens"
        return num_messages

    counts = await asyncio.gather(*(read(stubs[index % num_channels]) for index in range(num_streams)))
    return sum(counts), lags, time.monotonic()


def measure(model: Path, num_streams: int, num_tokens: int, token_rate: float, num_clients: int) -> dict[str, float]:
    """One run; gives its figures."""
    step_rate = token_rate / num_streams
    context = multiprocessing.get_context("spawn")
    step_times = context.Array("d", num_tokens, lock=False)
    results: Queue[Measured] = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        scheduler_address, listen = f"ipc://{folder}/requests.sock", f"unix:{folder}/gateway.sock"
        scheduler = context.Process(
            target=run_scheduler, args=(scheduler_address, num_streams, num_tokens, step_rate, step_times), daemon=True
        )
        clients = [
            context.Process(
                target=run_clients,
                args=(listen, len(range(index, num_streams, num_clients)), num_tokens, step_times, results),
            )
            for index in range(num_clients)
        ]
        command = [sys.executable, "-m", "scheduler_service.gateway", "--model", str(model), "--model-name", "bench"]
        command += ["--scheduler-address", scheduler_address, "--listen", listen, "--log-level", "warning"]
        gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own module)
        try:
            assert gateway.stdout is not None
            gateway.stdout.readline()
            scheduler.start()
            _wait_until_serving(listen)
            cpu_before = _cpu_s(gateway.pid)
            for client in clients:
                client.start()
            measured = [results.get(timeout=600) for _ in clients]
            cpu_s = _cpu_s(gateway.pid) - cpu_before
        finally:
            gateway.terminate()
            gateway.wait()
            scheduler.terminate()
    return _summary(measured, step_times[0], token_rate, cpu_s)


def _summary(measured: list[Measured], start_s: float, token_rate: float, cpu_s: float) -> dict[str, float]:
    lags = sorted(lag for _, client_lags, _ in measured for lag in client_lags)
    num_messages, num_tokens = sum(count for count, _, _ in measured), len(lags)
    wall_s = max(end_s for _, _, end_s in measured) - start_s
    return {
        "offered_tokens_per_s": token_rate,
        "delivered_tokens_per_s": num_tokens / wall_s,
        "tokens_per_message": num_tokens / num_messages,
        "cpu_us_per_token": cpu_s / num_tokens * 1e6,
        "cpu_us_per_message": cpu_s / num_messages * 1e6,
        "cpu_cores": cpu_s / wall_s,
        "lag_p50_ms": lags[num_tokens // 2] * 1e3,
        "lag_p99_ms": lags[num_tokens * 99 // 100] * 1e3,
    }


def _wait_until_serving(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m scheduler_service.bench.gateway", description=__doc__)
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--num-tokens", type=int, required=True, help="per stream")
    parser.add_argument("--token-rates", type=float, nargs="+", required=True)
    parser.add_argument("--client-processes", type=int, required=True)
    parser.add_argument("--model", type=Path, help="take the tokenizer from here; default: the tiny dummy model's")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = flags.model or write_dummy("tiny", Path(folder))
        runs = [
            measure(model, flags.num_streams, flags.num_tokens, token_rate, flags.client_processes)
            for token_rate in flags.token_rates
        ]
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
