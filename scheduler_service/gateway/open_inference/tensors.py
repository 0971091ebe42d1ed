"""How are texts and flags written as tensors, and read from them?

Elements are in `contents`, typed, or as bytes in the request's raw_input_contents: those of a BYTES tensor each after
its length, a little-endian uint32; those of a BOOL tensor one byte each.
"""

import struct
from collections.abc import Sequence
from typing import TypeVar

from pagewire.open_inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from scheduler_service.gateway.exceptions import InvalidArgumentError

Element = TypeVar("Element")

_LENGTH = struct.Struct("<I")


class Inputs:
    """The input tensors of one request, by name. All that this server takes have one element.

    Raises:
        InvalidArgumentError: two have the same name, or elements are missing.
    """

    def __init__(self, request: ModelInferRequest) -> None:
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise InvalidArgumentError(
                "raw_input_contents", f"has {len(raw)} entries for {len(request.inputs)} inputs: send one for each"
            )
        self._tensors: dict[str, tuple[ModelInferRequest.InferInputTensor, bytes | None]] = {}
        for index, tensor in enumerate(request.inputs):
            if tensor.name in self._tensors:
                raise InvalidArgumentError(tensor.name, "is there twice: leave one out")
            if tensor.parameters:
                raise InvalidArgumentError(
                    tensor.name,
                    f"has parameters ({', '.join(tensor.parameters)}), of which none is known: leave them out",
                )
            self._tensors[tensor.name] = tensor, raw[index] if raw else None

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

    def text(self, name: str) -> str | None:
        """The text in a BYTES tensor; None if there is no such tensor.

        Raises:
            InvalidArgumentError: it is not one text.
        """
        found = self._find(name, "BYTES")
        if found is None:
            return None
        tensor, raw = found
        element = _only(name, tensor.contents.bytes_contents) if raw is None else _unpacked(name, raw)
        try:
            return element.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(name, f"is not UTF-8: {error}") from error

    def flag(self, name: str) -> bool | None:
        """The truth value in a BOOL tensor; None if there is no such tensor.

        Raises:
            InvalidArgumentError: it is not one truth value.
        """
        found = self._find(name, "BOOL")
        if found is None:
            return None
        tensor, raw = found
        if raw is None:
            return _only(name, tensor.contents.bool_contents)
        if len(raw) != 1:
            raise InvalidArgumentError(name, f"has {len(raw)} bytes, must have one")
        return raw != b"\0"

    def _find(self, name: str, datatype: str) -> "tuple[ModelInferRequest.InferInputTensor, bytes | None] | None":
        found = self._tensors.get(name)
        if found is None:
            return None
        tensor = found[0]
        if tensor.datatype != datatype:
            raise InvalidArgumentError(name, f"has datatype {tensor.datatype!r}, must have {datatype}")
        if any(size != 1 for size in tensor.shape):
            raise InvalidArgumentError(name, f"has shape {list(tensor.shape)}, must have one element: [1]")
        return found


def add_text(response: ModelInferResponse, name: str, text: str) -> None:
    """Append an output of one text."""
    response.outputs.add(name=name, datatype="BYTES", shape=[1])
    data = text.encode()
    response.raw_output_contents.append(_LENGTH.pack(len(data)) + data)


def _unpacked(name: str, raw: bytes) -> bytes:
    length = _LENGTH.unpack_from(raw)[0] if len(raw) >= _LENGTH.size else None
    if length != len(raw) - _LENGTH.size:
        raise InvalidArgumentError(name, "must have one element: its length in 4 bytes, little-endian, then itself")
    return raw[_LENGTH.size :]


def _only(name: str, elements: Sequence[Element]) -> Element:
    if len(elements) != 1:
        raise InvalidArgumentError(name, f"has {len(elements)} elements, must have one")
    return elements[0]
