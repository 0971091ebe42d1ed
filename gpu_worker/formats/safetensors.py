"""How is a directory of safetensors files read?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.source import check_shape, missing_tensor

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


class SafetensorsSource:
    """The tensors of a model directory; files are mapped, one at a time, and only the parts asked for are read.

    What was read of a file leaves the process's memory when another one is mapped: a model may be larger than that.
    """

    def __init__(self, directory: Path) -> None:
        """Open the files that the index names, or the single file, or all there are.

        Raises:
            ModelLoadError: no file, a missing one, or one that cannot be read.
        """
        self._directory = directory
        self._files: dict[str, Path] = {}
        self._stored_bytes: dict[str, int] = {}
        self._mapped: tuple[Path, Any] | None = None
        for path in _find_files(directory):
            handle = self._map(path)
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                self._files[name] = path
                self._stored_bytes[name] = _stored_bytes(handle, name)

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """See TensorSource."""
        return self._stored_bytes

    def read(
        self, name: str, shape: tuple[int, ...], rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """See TensorSource."""
        if name not in self._files:
            raise missing_tensor(self._directory, name)
        path = self._files[name]
        view = self._map(path).get_slice(name)
        check_shape(path, name, shape, tuple(view.get_shape()))
        if view.get_dtype() not in _WEIGHT_DTYPES:
            raise ModelLoadError(
                f"{path}: tensor {name} is stored as {view.get_dtype()}; only F64, F32, F16 and BF16 weights are read: "
                "use a checkpoint that is not quantized"
            )
        parts = [slice(None) if part is None else slice(part.start, part.stop) for part in (rows, columns)]
        tensor: torch.Tensor = view[tuple(parts[: len(shape)])]
        return tensor

    def _map(self, path: Path) -> Any:
        """The mapped file, in place of the one mapped before, which stays mapped as long as tensors of it are there."""
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = None
            self._mapped = path, _open(path)
        return self._mapped[1]


def _find_files(directory: Path) -> list[Path]:
    """The checkpoint's files, all of which exist."""
    index = directory / _INDEX
    if index.exists():
        paths = [directory / name for name in sorted(set(_read_index(index).values()))]
        for path in paths:
            if not path.is_file():
                raise ModelLoadError(f"{path} is missing but {_INDEX} names it: download the model again")
        return paths
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ModelLoadError(f"{directory} holds no *.safetensors file; give a directory with safetensors weights")
    return paths


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index} cannot be read ({error!r}): download the model again") from error
    for name in names:
        if Path(name).name != name:
            raise ModelLoadError(f"{index} names the file {name!r}, which is not beside it: download the model again")
    return weight_map


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise ModelLoadError(
            f"{path} ({size} bytes) is truncated or not a safetensors file ({error}): download the model again"
        ) from error


def _stored_bytes(handle: Any, name: str) -> int:
    view = handle.get_slice(name)
    elements = 1
    for size in view.get_shape():
        elements *= size
    return elements * _DTYPE_BYTES.get(view.get_dtype(), 1)
