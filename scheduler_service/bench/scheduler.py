"""How fast is the scheduler alone? A worker that answers at once, 256 running sequences, 500-token prompts.

Two modes: `calls` drives Scheduler by function calls, messages encoded and decoded as on the wire; `sockets` runs the
scheduler process's loop with real ZeroMQ sockets against a worker in another process and a gateway in this one.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import zmq

from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.requests import EngineState, Hello, ModelInfo, Sampling, SchedulerMessage, Submit
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    SchedulerStepMessage,
    StepBatch,
    StepOutput,
    WorkerHello,
    WorkerLoaded,
    WorkerMessage,
    WorkerReady,
)
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.loop import SchedulerLoop
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.scheduler import Scheduler

VOCAB = 49152
NUM_BLOCKS = 60_000
MODEL = ModelInfo("llama", VOCAB, 1 << 17, (2,))


def make_submits(num_seqs: int, prompt_len: int, max_tokens: int) -> list[Submit]:
    """Distinct random prompts."""
    rng = np.random.default_rng(0)
    return [
        Submit(
            stream_id=index,
            request_id=f"r{index}",
            token_ids=rng.integers(0, VOCAB, prompt_len, dtype=np.int32).tobytes(),
            num_prompt_tokens=prompt_len,
            sampling=Sampling(0.0, 0, 1.0, 0.0, 0),
            max_tokens=max_tokens,
            min_tokens=0,
            stop_token_ids=(),
            ignore_eos=False,
            priority=0,
            cache_salt="",
            deadline_s=None,
        )
        for index in range(num_seqs)
    ]


def answer(batch: StepBatch, tokens: npt.NDArray[np.int32]) -> StepOutput:
    """A result at once: tokens that are never EOS."""
    num_sampled = batch.sampled.count(1)
    return StepOutput(batch.step_id, tokens[:num_sampled].tobytes(), bytes(num_sampled))


def bench_calls(num_seqs: int, prompt_len: int, steps: int) -> float:
    """Seconds per decode step, driven by function calls."""
    config = SchedulerConfig(max_num_seqs=num_seqs, max_num_batched_tokens=8192)
    metrics = EngineMetrics(num_seqs, MODEL.max_model_len)
    scheduler = Scheduler(config, NUM_BLOCKS, frozenset(MODEL.eos_token_ids), metrics)
    to_worker, to_scheduler = Codec[StepBatch](SchedulerStepMessage), Codec[StepOutput](WorkerMessage)
    me = new_incarnation()
    tokens = np.arange(100, 100 + num_seqs, dtype=np.int32)
    for submit in make_submits(num_seqs, prompt_len, steps * 2 + 200):
        scheduler.add(b"gateway1", submit, prompt_len + steps * 2 + 200)

    in_flight: list[bytes] = []

    def step() -> None:
        while scheduler.can_schedule and (batch := scheduler.schedule()) is not None:
            in_flight.append(to_worker.encode(batch, me, me))
        result = answer(to_worker.decode(in_flight.pop(0)).message, tokens)
        scheduler.update(to_scheduler.decode(to_scheduler.encode(result, me, me)).message)
        for _, message in scheduler.take_outputs():
            to_scheduler.encode(message, me, me)

    for _ in range(100):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def at_once(batch: StepBatch) -> float:
    """A pace of `fake_worker`: every step is done as soon as it is sent."""
    return 0.0


def fake_worker(address: str, done_s: Callable[[StepBatch], float] = at_once) -> None:
    """A worker process that computes nothing. It has as many KV blocks as the scheduler was told to use.

    Args:
        done_s: when the step is done that has just come, by the monotonic clock.
    """
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    codec, me = Codec[StepBatch](SchedulerStepMessage), new_incarnation()
    tokens = np.arange(100, 100 + 4096, dtype=np.int32)
    socket.send(codec.encode(WorkerHello(0, 1, 0), me, ANY))
    while True:
        envelope = codec.decode(socket.recv())
        message = envelope.message
        if isinstance(message, EngineConfig):
            socket.send(codec.encode(WorkerLoaded(0, message.num_blocks or NUM_BLOCKS, MODEL), me, envelope.sender))
        elif isinstance(message, AllocateCache):
            socket.send(codec.encode(WorkerReady(0), me, envelope.sender))
        else:
            time.sleep(max(0.0, done_s(message) - time.monotonic()))
            socket.send(codec.encode(answer(message, tokens), me, envelope.sender))


def bench_sockets(num_seqs: int, prompt_len: int, steps: int) -> float:
    """Seconds per decode step of the whole loop, worker in another process, gateway in a thread of this one."""
    with tempfile.TemporaryDirectory() as folder:
        requests, workers = f"ipc://{folder}/requests", f"ipc://{folder}/workers"
        loop = SchedulerLoop(SchedulerConfig(max_num_seqs=num_seqs, max_num_batched_tokens=8192), requests, workers)
        worker = multiprocessing.get_context("spawn").Process(target=fake_worker, args=(workers,), daemon=True)
        worker.start()
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            return _drive_gateway(requests, num_seqs, prompt_len, steps)
        finally:
            loop.stop()
            thread.join()
            worker.kill()


def _drive_gateway(address: str, num_seqs: int, prompt_len: int, steps: int) -> float:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    codec, me = Codec[SchedulerMessage](SchedulerMessage), new_incarnation()
    socket.send(codec.encode(Hello("bench"), me, ANY))
    while True:
        status = codec.decode(socket.recv()).message
        if getattr(status, "state", None) is EngineState.READY:
            break
    for submit in make_submits(num_seqs, prompt_len, steps + 200):
        socket.send(codec.encode(submit, me, ANY))
    count, start = 0, 0.0
    while count < (steps + 100) * num_seqs:
        message = codec.decode(socket.recv()).message
        count += len(getattr(message, "token_ids", b"")) // 4
        if not start and count >= 100 * num_seqs:
            start, counted_from = time.perf_counter(), count
    return (time.perf_counter() - start) / ((count - counted_from) / num_seqs)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m scheduler_service.bench.scheduler", description=__doc__)
    parser.add_argument("--num-seqs", type=int, required=True)
    parser.add_argument("--prompt-len", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--modes", nargs="+", choices=_MODES, required=True)
    arguments = parser.parse_args()
    runs = []
    for mode in arguments.modes:
        step_us = 1e6 * _MODES[mode](arguments.num_seqs, arguments.prompt_len, arguments.steps)
        us_per_sequence = step_us / arguments.num_seqs
        runs.append(
            {"mode": mode, "steps_per_s": 1e6 / step_us, "us_per_step": step_us, "us_per_sequence": us_per_sequence}
        )
    print(json.dumps(runs))


_MODES = {"calls": bench_calls, "sockets": bench_sockets}

if __name__ == "__main__":
    main()
