"""Does the simulated engine give the figures that were measured through the whole stack (docs/performance.md)?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.scaling.engine import DetailedEngine
from benchmarks.scaling.shapes import QWEN3_0_6B, QWEN3_8B, ModelShape
from benchmarks.scaling.step_time import StepTimeModel
from pagewire_client.bench.workload import nano_workload
from scheduler_service.core.config import SchedulerConfig

_MEMORY_BYTES = 68e9
_BLOCK_SIZE = 16
_GATEWAY = b"gateway1"


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run on one H100. `concurrency` None: all requests of nano-bench at once; else streams of 512 + 512 tokens."""

    name: str
    shape: ModelShape
    max_num_batched_tokens: int
    concurrency: int | None
    tokens_per_s: float


MEASURED_RUNS = (
    MeasuredRun("nano-bench, 0.6B", QWEN3_0_6B, 2048, None, 20_043),
    MeasuredRun("nano-bench, 8B, 2,048 tokens a step", QWEN3_8B, 2048, None, 7_789),
    MeasuredRun("nano-bench, 8B, 8,192 tokens a step", QWEN3_8B, 8192, None, 7_949),
    MeasuredRun("64 streams, 0.6B", QWEN3_0_6B, 2048, 64, 17_967),
    MeasuredRun("256 streams, 0.6B", QWEN3_0_6B, 2048, 256, 25_972),
)


def simulated_run(run: MeasuredRun, model: StepTimeModel) -> float:
    """Output tokens a second of the same requests at the simulated engine."""
    config = SchedulerConfig(max_num_seqs=512, max_num_batched_tokens=run.max_num_batched_tokens)
    engine = DetailedEngine(model, run.shape, config, run.shape.num_kv_blocks(_MEMORY_BYTES, _BLOCK_SIZE))
    waiting = _requests(run)
    for prompt, num_answered in [waiting.pop() for _ in range(run.concurrency or len(waiting))]:
        engine.submit(_GATEWAY, prompt, num_answered, 0.0)
    while engine.next_end_s is not None:
        for _ in engine.finish_step():
            if waiting:
                prompt, num_answered = waiting.pop()
                engine.submit(_GATEWAY, prompt, num_answered, engine.now_s)
    return engine.num_tokens / engine.now_s


def _requests(run: MeasuredRun) -> list[tuple[npt.NDArray[np.int32], int]]:
    """The last first."""
    if run.concurrency is None:
        requests = [(np.array(each.prompt, dtype=np.int32), each.output_len) for each in nano_workload().requests]
        return requests[::-1]
    random = np.random.default_rng(0)
    prompts = random.integers(0, run.shape.vocab_size, (3 * run.concurrency, 512), dtype=np.int32)
    return [(prompt, 512) for prompt in prompts]
