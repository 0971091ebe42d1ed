"""How is a model made without a checkpoint, to measure speed?"""

import zlib
from collections.abc import Mapping

import torch

_SCALE = 0.02


class DummySource:
    """Random weights that depend only on each tensor's name: every rank cuts its part from the same tensor."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """Nothing is stored."""
        return {}

    def read(
        self, name: str, shape: tuple[int, ...], rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """See TensorSource. Norm weights are one, biases zero, matrices normal with deviation 0.02."""
        tensor = self._make(name, shape)
        if rows is not None:
            tensor = tensor[rows.start : rows.stop]
        return tensor if columns is None else tensor[:, columns.start : columns.stop]

    def _make(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            value = 0.0 if name.endswith(".bias") else 1.0
            return torch.full(shape, value, device=self._device, dtype=self._dtype)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        weight = torch.empty(shape, device=self._device, dtype=self._dtype)
        return weight.normal_(std=_SCALE, generator=generator)
