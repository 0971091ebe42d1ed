"""By which angle is each position rotated?"""

import math
from collections.abc import Callable

import torch

from gpu_worker.models.config import (
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    YarnScaling,
)


def cos_sin_table(rope: RopeConfig, num_positions: int, device: torch.device) -> torch.Tensor:
    """Cosines, then sines, of every position's angles: [num_positions, rotary_dim] float32.

    Angles are float32 products of position and frequency, as in training. Source: Su et al., RoFormer, section 3.2.
    """
    frequencies, magnitude = _frequencies(rope)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude).to(device)


def _frequencies(rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Radians per position, [rotary_dim / 2] float32, and a factor for cosines and sines."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor):
            return frequencies / factor, 1.0
        case FrequencyDivisors(divisors):
            return frequencies / torch.tensor(divisors, dtype=torch.float32), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies, rope, scaling), _yarn_magnitude(scaling)


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Blend of kept and stretched frequencies by turns within the original length.

    turns   0 ........ low_freq_factor ........ high_freq_factor ........
            stretched                blended                  kept
    """
    turns = scaling.original_max_len * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return _blend(frequencies, scaling.factor, kept.clamp(0, 1))


def _yarn(frequencies: torch.Tensor, rope: RopeConfig, scaling: YarnScaling) -> torch.Tensor:
    """YaRN's blend by dimension, between those that make beta_fast and beta_slow turns in the original length."""
    low = max(_dimension_of(scaling.beta_fast, rope, scaling, math.floor), 0)
    high = min(_dimension_of(scaling.beta_slow, rope, scaling, math.ceil), rope.rotary_dim - 1)
    indices = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    stretched = ((indices - low) / (high - low or 0.001)).clamp(0, 1)
    return _blend(frequencies, scaling.factor, 1 - stretched)


def _dimension_of(turns: float, rope: RopeConfig, scaling: YarnScaling, rounding: Callable[[float], int]) -> float:
    """The (fractional) frequency index that makes `turns` turns within the original length."""
    ratio = scaling.original_max_len / (turns * 2 * math.pi)
    index = rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))
    return rounding(index) if scaling.truncate else index


def _yarn_magnitude(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _blend(frequencies: torch.Tensor, factor: float, kept: torch.Tensor) -> torch.Tensor:
    """Frequencies where `kept` is 1, frequencies / factor where it is 0."""
    return frequencies * kept + frequencies / factor * (1 - kept)
