"""How are the tensors of a GGUF file read under the names and in the order of Hugging Face checkpoints?"""

import mmap
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.formats.gguf_header import TensorInfo, read_header
from gpu_worker.formats.source import check_shape, missing_tensor

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_INTERLEAVED = (".self_attn.q_proj.", ".self_attn.k_proj.")

Array = npt.NDArray[np.float32]


class GgufSource:
    """The tensors of one GGUF file as float32; the file is mapped, and only what is asked for is dequantized."""

    def __init__(self, path: Path, interleaved_head_dim: int | None) -> None:
        """Open the file.

        Args:
            interleaved_head_dim: the head size where query and key rows are stored in RoPE's interleaved order (the
                llama architecture), None where they are in the order of two halves.

        Raises:
            ModelLoadError: see read_header.
        """
        self._path = path
        self._head_dim = interleaved_head_dim
        self._tensors = {hf_name(name): info for name, info in read_header(path).tensors.items()}
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """See TensorSource; tensors that have no Hugging Face name keep the file's."""
        return {name: info.num_bytes for name, info in self._tensors.items()}

    def read(
        self, name: str, shape: tuple[int, ...], rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """See TensorSource. Rows of queries and keys must be whole heads."""
        if name not in self._tensors:
            raise missing_tensor(self._path, name)
        info = self._tensors[name]
        check_shape(self._path, name, shape, info.shape)
        tensor = torch.from_numpy(self._dequantize(name, info, range(shape[0]) if rows is None else rows, columns))
        if self._head_dim is not None and any(part in name for part in _INTERLEAVED):
            tensor = _deinterleave(tensor, self._head_dim)
        return tensor

    def _dequantize(self, name: str, info: TensorInfo, rows: range, columns: range | None) -> Array:
        raw = self._raw_rows(info, rows)
        try:
            if columns is None:
                values: Array = dequantize(raw, info.quantization).reshape(len(rows), *info.shape[1:])
            else:
                # Rows are made of blocks of elements: those blocks that hold the columns are read.
                size, num_bytes = GGML_QUANT_SIZES[info.quantization]
                first, last = columns.start // size, -(-columns.stop // size)
                blocks = np.ascontiguousarray(raw[:, first * num_bytes : last * num_bytes])
                values = dequantize(blocks, info.quantization).reshape(len(rows), (last - first) * size)
                values = values[:, columns.start - first * size : columns.stop - first * size]
        except (NotImplementedError, ValueError) as error:
            raise ModelLoadError(
                f"{self._path}: tensor {name} of type {info.quantization.name} cannot be read ({error}): "
                "use a file with another quantization"
            ) from error
        return np.require(values, requirements="W")

    def _raw_rows(self, info: TensorInfo, rows: range) -> npt.NDArray[np.uint8]:
        """The bytes of some rows as they lie in the file, [rows, bytes of a row]."""
        row_bytes = info.num_bytes // info.shape[0]
        raw = np.frombuffer(self._data, np.uint8, len(rows) * row_bytes, info.offset + rows.start * row_bytes)
        return raw.reshape(len(rows), row_bytes)


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; the same name where there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, part, kind = match.groups()
    if layer is None:
        return f"{_TOP[part]}.{kind}" if part in _TOP else name
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}" if part in _LAYER else name


def _deinterleave(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undo the row order of llama's queries and keys: per head, pair i is rows (2 i, 2 i + 1) in the file and
    rows (i, i + head_dim / 2) here."""
    pairs = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).flatten(0, 2)
