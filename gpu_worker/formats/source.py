"""What must a checkpoint format be able to do?"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from gpu_worker.formats.errors import ModelLoadError


class TensorSource(Protocol):
    """A checkpoint that is read tensor by tensor, under the names Hugging Face checkpoints use."""

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """Every tensor's name and its size in the checkpoint."""
        ...

    def read(
        self, name: str, shape: tuple[int, ...], rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """Read a tensor or a part of it, in the dtype that the format gives it; valid until the next read.

        Args:
            shape: what the whole tensor must have.
            rows, columns: part of the first and of the second dimension; None means all of it.

        Raises:
            ModelLoadError: the tensor is missing, damaged or has another shape.
        """
        ...


class ProgressSource:
    """A source that reports how many of its bytes were asked for."""

    def __init__(self, source: TensorSource, on_progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._on_progress = on_progress
        self._seen: set[str] = set()
        self._done = 0
        self._total = sum(source.stored_bytes.values())

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """See TensorSource."""
        return self._source.stored_bytes

    def read(
        self, name: str, shape: tuple[int, ...], rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """See TensorSource; then report. A tensor counts whole at its first read."""
        tensor = self._source.read(name, shape, rows, columns)
        if name not in self._seen:
            self._seen.add(name)
            self._done += self._source.stored_bytes.get(name, 0)
            self._on_progress(self._done, self._total)
        return tensor

    def finish(self) -> None:
        """Report that all is done, tensors that nobody needed included."""
        self._on_progress(self._total, self._total)


def check_shape(file: Path, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    """Raise ModelLoadError unless the checkpoint's tensor has the shape its configuration implies."""
    if expected != found:
        raise ModelLoadError(
            f"{file}: tensor {name} has shape {list(found)} but the model's configuration says {list(expected)}; "
            "configuration and weights are not of the same model"
        )


def missing_tensor(file: Path, name: str) -> ModelLoadError:
    """The error for a tensor that the model needs and the checkpoint lacks."""
    return ModelLoadError(
        f"{file}: tensor {name} is missing; the checkpoint is incomplete or of another architecture: download it again"
    )
