"""Which metadata does a GGUF file carry? Reads its key-value section alone, in some tens of milliseconds.

    file:  | "GGUF" | version u32 | num_tensors u64 | num_pairs u64 | pairs ... | tensors ... |
    pair:  | key string | type u32 | value |        string: | length u64 | UTF-8 bytes |
    array: | type u32 | length u64 | values ... |

Source: the GGUF specification in the ggml repository, docs/gguf.md.
"""

import mmap
import struct
from pathlib import Path

from scheduler_service.gateway.exceptions import ModelFileError

Value = bool | int | float | str | list["Value"]
Metadata = dict[str, Value]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING = 8
_ARRAY = 9
# GGUF value type -> struct code.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_gguf_metadata(path: Path) -> Metadata:
    """Read all key-value pairs of a GGUF file.

    Raises:
        ModelFileError: the file is missing, not GGUF, or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data)
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {path}: {error.strerror}") from error
    except (struct.error, ValueError, OverflowError, RecursionError) as error:
        # An empty file cannot be mapped: ValueError.
        raise ModelFileError(
            f"the model file {path} is not a complete GGUF file ({error}): download it again"
        ) from error


def _parse(data: mmap.mmap) -> Metadata:
    if data[:4] != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    (version,) = struct.unpack_from("<I", data, 4)
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not one of {_VERSIONS}")
    cursor = _Cursor(data, offset=4 + 4 + 8)
    num_pairs = cursor.number("Q")
    metadata: Metadata = {}
    for _ in range(int(num_pairs)):
        key = cursor.string()
        metadata[key] = cursor.value(int(cursor.number("I")))
    return metadata


class _Cursor:
    """A position in the file from which values are read one after another."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: mmap.mmap, offset: int) -> None:
        self._data = data
        self._offset = offset

    def value(self, value_type: int) -> Value:
        if value_type == _STRING:
            return self.string()
        if value_type == _ARRAY:
            return self._array()
        return self.number(self._code(value_type))

    def number(self, code: str) -> int | float | bool:
        layout = "<" + code
        (number,) = struct.unpack_from(layout, self._data, self._offset)
        self._offset += struct.calcsize(layout)
        assert isinstance(number, int | float)
        return number

    def string(self) -> str:
        return self._strings(1)[0]

    def _array(self) -> list[Value]:
        value_type, length = struct.unpack_from("<IQ", self._data, self._offset)
        self._offset += 12
        if length > len(self._data) - self._offset:
            raise ValueError(f"it ends inside an array of {length} values")
        if value_type == _STRING:
            return [*self._strings(length)]
        if value_type == _ARRAY:
            return [self._array() for _ in range(length)]
        layout = f"<{length}{self._code(value_type)}"
        numbers = struct.unpack_from(layout, self._data, self._offset)
        self._offset += struct.calcsize(layout)
        return [*numbers]

    def _strings(self, count: int) -> list[str]:
        data, offset, size = self._data, self._offset, len(self._data)
        unpack_length = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = offset + 8
            offset = start + unpack_length(data, offset)[0]
            if offset > size:
                raise ValueError("it ends inside a string")
            strings.append(data[start:offset].decode("utf-8"))
        self._offset = offset
        return strings

    @staticmethod
    def _code(value_type: int) -> str:
        if value_type not in _NUMBERS:
            raise ValueError(f"value type {value_type} does not exist")
        return _NUMBERS[value_type]
