"""How long does a step take on one H100? A sum of floors, each with a factor fitted to what was measured.

    seconds = layers * a + products * b + KV bytes * c + activation bytes * d

Bytes are counted at the speed of a device copy, FLOPs at that of a large matrix product: a factor of 1 is the floor.
The products' floor is the hypotenuse of their bytes and their FLOPs: it is near the larger one, and above it where
both matter. Layers have one factor (microseconds of launches, gaps and small kernels) up to `SMALL_BATCH` tokens,
where the worker has kernels of its own for the products, and another above.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.scaling.shapes import QWEN3_0_6B, QWEN3_8B, ModelShape

COPY_BYTES_PER_S = 3.02e12
PRODUCT_FLOPS = 783e12
SMALL_BATCH = 4
_MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes: `num_decodes` sequences draw a token after reading `num_kv_tokens` in all, and so many
    tokens of prompts see `num_attended` tokens in all."""

    num_decodes: int
    num_kv_tokens: float
    num_prompt_tokens: int = 0
    num_attended: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """A measured step."""

    shape: ModelShape
    step: Step
    seconds: float


def _decode(shape: ModelShape, batch: int, context: int, milliseconds: float) -> Point:
    return Point(shape, Step(batch, batch * context), milliseconds / 1e3)


def _prefill(shape: ModelShape, num_prompts: int, length: int, milliseconds: float) -> Point:
    step = Step(0, 0, num_prompts * length, num_prompts * length * length / 2)
    return Point(shape, step, milliseconds / 1e3)


MEASURED: tuple[Point, ...] = (
    # The model runner alone, contexts of 500 to 1,300 tokens.
    _decode(QWEN3_0_6B, 1, 893, 0.83),
    _decode(QWEN3_0_6B, 64, 893, 3.59),
    _decode(QWEN3_0_6B, 256, 893, 10.09),
    # docs/performance.md, "A decode step" and "Prefill".
    _decode(QWEN3_0_6B, 64, 790, 3.60),
    _decode(QWEN3_0_6B, 256, 790, 9.61),
    _decode(QWEN3_8B, 200, 790, 16.1),
    _prefill(QWEN3_0_6B, 4, 512, 4.9),
    _prefill(QWEN3_8B, 16, 512, 191.0),
)


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Seconds of a step: the factors of the floors, in the order of `floors`."""

    factors: tuple[float, ...]

    def seconds(self, shape: ModelShape, step: Step) -> float:
        """Of one step."""
        return float(np.dot(self.factors, floors(shape, step)))


def floors(shape: ModelShape, step: Step) -> npt.NDArray[np.float64]:
    """[5] a microsecond a layer of a small batch, and of a large one; seconds for products, for keys and values, for
    activations."""
    num_tokens = step.num_decodes + step.num_prompt_tokens
    layers_s = shape.num_layers * _MICROSECOND
    weights_s = shape.step_weight_bytes / COPY_BYTES_PER_S
    flops_s = shape.flops(num_tokens, step.num_decodes, step.num_attended) / PRODUCT_FLOPS
    return np.array(
        [
            layers_s * (num_tokens <= SMALL_BATCH),
            layers_s * (num_tokens > SMALL_BATCH),
            math.hypot(weights_s, flops_s),
            step.num_kv_tokens * shape.kv_bytes_per_token / COPY_BYTES_PER_S,
            num_tokens * shape.activation_bytes_per_token / COPY_BYTES_PER_S,
        ]
    )


def fit(points: Sequence[Point] = MEASURED) -> StepTimeModel:
    """Least squares of the relative errors; no factor of a floor is below 1, nor that of the layers below 0."""
    rows = np.array([floors(point.shape, point.step) / point.seconds for point in points])
    least = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    free = np.ones(len(least), dtype=bool)
    factors = least.copy()
    while True:
        rest = 1.0 - rows[:, ~free] @ least[~free]
        factors[free] = np.linalg.lstsq(rows[:, free], rest, rcond=None)[0]
        below = free & (factors < least)
        if not below.any():
            return StepTimeModel(tuple(factors.tolist()))
        # The one furthest below its floor is held there.
        worst = int(np.argmin(np.where(below, factors - least, np.inf)))
        free[worst], factors[worst] = False, least[worst]


def relative_errors(model: StepTimeModel, points: Sequence[Point] = MEASURED) -> list[float]:
    """By how much the model is off at each point."""
    return [model.seconds(point.shape, point.step) / point.seconds - 1.0 for point in points]
