"""A model runner in the place of the worker of the scheduler's harness."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from gpu_worker.config import WorkerConfig
from gpu_worker.model_runner import ModelRunner, PendingStep
from pagewire.ipc.requests import Sampling
from pagewire.ipc.steps import EngineConfig, StepBatch, StepOutput
from tests.unit.core.harness import Harness
from tests.unit.gpu_worker.native_kernels import CACHE_DIR


@dataclass
class LaunchedSteps:
    """A runner's steps in flight, as the harness's worker."""

    runner: ModelRunner
    queue: deque[PendingStep] = field(default_factory=deque)

    def send(self, batch: StepBatch) -> None:
        self.queue.append(self.runner.launch(batch))

    def run_next(self) -> StepOutput:
        return self.queue.popleft().output()


def run_prompts(
    folder: Path,
    prompts: list[list[int]],
    num_tokens: int,
    samplings: list[Sampling],
    num_blocks: int,
    block_size: int,
    chunk: int,
    max_num_seqs: int = 32,
    device: str = "cpu",
    dtype: str = "float32",
    enforce_eager: bool = False,
    deterministic: bool = False,
    before: list[list[int]] | None = None,
    **scheduling: object,
) -> Harness:
    """Run prompts with a checkpoint's model, under the real scheduler; stream i is prompt i.

    Args:
        before: prompts whose blocks are in the prefix cache when the others come.
    """
    settings = WorkerConfig(
        folder,
        "",
        CACHE_DIR,
        1,
        device=device,
        dtype=dtype,
        enforce_eager=enforce_eager,
        deterministic=deterministic,
    )
    runner = ModelRunner(settings)
    engine = EngineConfig(block_size, max_num_seqs, chunk, None, num_blocks)
    runner.allocate(runner.load(engine, lambda stage, done, total: None)[0], lambda stage, done, total: None)
    harness = Harness(
        num_blocks, block_size=block_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=chunk, **scheduling
    )
    harness.worker = LaunchedSteps(runner)  # type: ignore[assignment]
    for index, prompt in enumerate(before or [], start=len(prompts)):
        harness.add(index, prompt, max_tokens=1)
    harness.run()
    for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        harness.add(index, prompt, max_tokens=num_tokens, sampling=sampling)
    harness.run()
    return harness
