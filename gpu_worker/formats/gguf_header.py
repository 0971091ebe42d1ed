"""What does a GGUF file say about itself: its metadata, and where its tensors lie?

Arrays are stepped over, not read: a worker needs none, and a vocabulary of strings is most of the header.
Layout: the GGUF specification in the ggml project's docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gpu_worker.formats.errors import ModelLoadError

Scalar = str | int | float | bool

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its shape as torch has it (rows first), and its bytes in the file."""

    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalar metadata and the tensors of one file."""

    metadata: dict[str, Scalar]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Read a file's header and check that all its tensors are inside the file.

    Raises:
        ModelLoadError: not a GGUF file of a known version, truncated, damaged, or one part of several.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error
    except (struct.error, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelLoadError(f"{path} is truncated or damaged ({error}): download it again") from error


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.offset = 0

    def take(self, layout: struct.Struct) -> Scalar:
        (value,) = layout.unpack_from(self._data, self.offset)
        self.offset += layout.size
        scalar: Scalar = value
        return scalar

    def count(self, layout: struct.Struct = _U64) -> int:
        """A length, which can never exceed the file's own."""
        value = int(self.take(layout))
        if value > len(self._data):
            raise ValueError(f"length {value} at byte {self.offset}")
        return value

    def text(self) -> str:
        return self._data[self.skip_text() : self.offset].decode("utf-8", errors="replace")

    def skip_text(self) -> int:
        """Step over a string; where its bytes start."""
        length = self.count()
        self.offset += length
        return self.offset - length

    def skip_array(self) -> None:
        kind, length = self.count(_U32), self.count()
        if kind in _SCALARS:
            self.offset += length * _SCALARS[kind].size
            return
        if kind != _STRING:
            raise ValueError(f"array of unknown type {kind}")
        for _ in range(length):
            self.skip_text()


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    if data[:4] != _MAGIC:
        raise ModelLoadError(f"{path} is not a GGUF file")
    cursor = _Cursor(data)
    cursor.offset = len(_MAGIC)
    version = int(cursor.take(_U32))
    if version not in _VERSIONS:
        raise ModelLoadError(f"{path} has GGUF version {version}; only little-endian versions 2 and 3 are read")
    num_tensors, num_entries = cursor.count(), cursor.count()
    metadata = _read_metadata(cursor, num_entries)
    if int(metadata.get("split.count", 1)) > 1:
        raise ModelLoadError(f"{path} is one part of a split model: join the parts with gguf-split --merge")
    infos = [_read_info(cursor) for _ in range(num_tensors)]
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    start = -(-cursor.offset // alignment) * alignment
    tensors = {name: _locate(path, info, start) for name, info in infos}
    _check_complete(path, tensors, len(data))
    return GgufHeader(metadata, tensors)


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict[str, Scalar]:
    metadata: dict[str, Scalar] = {}
    for _ in range(num_entries):
        key, kind = cursor.text(), cursor.count(_U32)
        if kind == _ARRAY:
            cursor.skip_array()
        else:
            metadata[key] = cursor.text() if kind == _STRING else cursor.take(_SCALARS[kind])
    return metadata


def _read_info(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """Name, then (shape, type number, offset from the start of the tensor data)."""
    name = cursor.text()
    sizes = [cursor.count() for _ in range(cursor.count(_U32))]
    return name, (tuple(reversed(sizes)), cursor.count(_U32), cursor.count())


def _locate(path: Path, info: tuple[tuple[int, ...], int, int], start: int) -> TensorInfo:
    shape, kind, offset = info
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelLoadError(f"{path} has tensors of the unknown type {kind}: update the gguf package") from error
    block_elements, block_bytes = GGML_QUANT_SIZES[quantization]
    num_elements = 1
    for size in shape:
        num_elements *= size
    return TensorInfo(shape, quantization, start + offset, num_elements // block_elements * block_bytes)


def _check_complete(path: Path, tensors: dict[str, TensorInfo], file_bytes: int) -> None:
    needed = max((info.offset + info.num_bytes for info in tensors.values()), default=0)
    if needed > file_bytes:
        raise ModelLoadError(f"{path} is truncated: {file_bytes} bytes of at least {needed}; download it again")
