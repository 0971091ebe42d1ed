"""What must a way to run steps be able to do?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.step_inputs import StepInputs


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    token_ids, finite: [num_sampled], the tokens, and whether the logits they were drawn from are finite.
    logprobs, prompt_logprobs: see StepOutput.
    """

    token_ids: npt.NDArray[np.int32]
    finite: npt.NDArray[np.bool_]
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""


class Drawn(Protocol):
    """The tokens of a step that was launched and may still run."""

    @property
    def is_done(self) -> bool:
        """Whether `read` returns at once."""
        ...

    def read(self) -> StepResult:
        """Wait for the step."""
        ...

    def device_span_ns(self) -> tuple[int, int] | None:
        """From when to when the device ran a step that is done, on the monotonic clock; None if nobody traces it."""
        ...


class Executor(Protocol):
    """Runs steps in the order of their launches: `measure_bytes`, then `start`, then `launch` for each."""

    def measure_bytes(self) -> int:
        """Run the worst step on a KV cache of one block: the bytes that weights and steps take at their peak."""
        ...

    def start(self, kv_caches: Sequence[torch.Tensor], on_progress: Callable[[int, int], None]) -> None:
        """Take the KV caches, per layer [2, num_blocks, block_size, num_kv_heads, head_dim], and get ready."""
        ...

    def release(self) -> None:
        """Let go of the KV caches, so that others can be allocated: `start` comes next."""
        ...

    def read_tokens(self) -> npt.NDArray[np.int32]:
        """Tokens of all slots, [max_num_seqs, width], once all steps are done."""
        ...

    def launch(self, inputs: StepInputs) -> Drawn:
        """Enqueue a step. What earlier steps draw is known to it without their being done."""
        ...
