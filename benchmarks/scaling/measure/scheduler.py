"""What does a step cost the scheduler's process, beside what it tells gateways? CPU time by the number of sequences."""

import time

import numpy as np

from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.steps import SchedulerStepMessage, StepBatch, StepOutput, WorkerMessage
from scheduler_service.bench.scheduler import MODEL, NUM_BLOCKS, answer, make_submits
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.scheduler import Scheduler

_PROMPT_TOKENS = 300
_NUM_STEPS = 150
_SIZES = (64, 256, 1024)


def measure_steps() -> dict[str, float]:
    """Microseconds of a decode step: a line through the sizes, as a constant and a slope for each sequence."""
    step_us = [_step_us(size) for size in _SIZES]
    slope, constant = np.polyfit(_SIZES, step_us, 1, w=1 / np.array(step_us))
    return {"scheduler_step_us": float(constant), "scheduler_sequence_us": float(slope)}


def _step_us(num_seqs: int) -> float:
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=num_seqs, max_num_batched_tokens=8192),
        NUM_BLOCKS,
        frozenset(),
        EngineMetrics(num_seqs, MODEL.max_model_len),
    )
    to_worker, to_scheduler = Codec[StepBatch](SchedulerStepMessage), Codec[StepOutput](WorkerMessage)
    me = new_incarnation()
    tokens = np.arange(100, 100 + num_seqs, dtype=np.int32)
    for submit in make_submits(num_seqs, _PROMPT_TOKENS, 4 * _NUM_STEPS):
        scheduler.add(b"gateway1", submit, _PROMPT_TOKENS + 4 * _NUM_STEPS)
    in_flight: list[StepBatch] = []

    def step() -> float:
        """CPU seconds of what the scheduler's process does in a step."""
        start_s = time.thread_time()
        while scheduler.can_schedule and (batch := scheduler.schedule()) is not None:
            to_worker.encode(batch, me, me)
            in_flight.append(batch)
        took_s = time.thread_time() - start_s
        frame = to_scheduler.encode(answer(in_flight.pop(0), tokens), me, me)
        start_s = time.thread_time()
        scheduler.update(to_scheduler.decode(frame).message)
        took_s += time.thread_time() - start_s
        scheduler.take_outputs()
        return took_s

    for _ in range(_NUM_STEPS):
        step()
    return 1e6 * float(np.median([step() for _ in range(_NUM_STEPS)]))
