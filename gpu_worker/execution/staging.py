"""How do a step's numbers reach the device in one copy, at places that captured graphs know?

A buffer on the device has two parts, each laid out by padded sizes alone:

    what drawing needs, for num_sampled rows | what the layers need, for num_seqs and num_tokens
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.step_inputs import StepInputs

# Triton compiles a kernel once more for pointers that are not aligned to this.
_ALIGNMENT = 16
_NUMPY_TO_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


@dataclass(frozen=True, slots=True)
class PaddedShape:
    """Sizes of a step once it is padded. `mixed`: some sequences may compute several tokens."""

    num_seqs: int
    num_tokens: int
    mixed: bool


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Views of the device buffer; see StepInputs. sampled_rows: [num_seqs]."""

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    sampled_rows: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    token_places: torch.Tensor


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """Views of the device buffer; see SamplingBatch. drawn_places: [num_sampled]."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    drawn_places: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Field:
    """`count` numbers at a byte offset; a row of padding holds `padding`, or the last real row's number if None."""

    offset: int
    count: int
    dtype: np.dtype[np.generic]
    padding: float | None


class _Layout(dict[str, _Field]):
    """Fields one after the other."""

    def __init__(self, start: int, specs: dict[str, tuple[int, type[np.generic], float | None]]) -> None:
        super().__init__()
        self.end = start
        for name, (count, kind, padding) in specs.items():
            dtype = np.dtype(kind)
            self[name] = _Field(self.end, count, dtype, padding)
            self.end += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT

    def fill(self, host: npt.NDArray[np.uint8], name: str, values: npt.NDArray[np.generic]) -> None:
        """Write a field's values, and its padding after them."""
        field = self[name]
        view = host[field.offset : field.offset + field.count * field.dtype.itemsize].view(field.dtype)
        view[: len(values)] = values
        if len(values) < field.count:
            view[len(values) :] = values[-1] if field.padding is None else field.padding

    def on_device(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """A view of each field."""
        views = {}
        for name, field in self.items():
            end = field.offset + field.count * field.dtype.itemsize
            views[name] = buffer[field.offset : end].view(_NUMPY_TO_TORCH[field.dtype])
        return views


class Staging:
    """The device buffer, and how it is filled.

    Args:
        max_seqs, max_tokens: of any step, padding included.
        padding_slot, padding_place: see DeviceSlots.
    """

    def __init__(
        self, max_seqs: int, max_tokens: int, padding_slot: int, padding_place: int, device: torch.device
    ) -> None:
        self._padding_slot = padding_slot
        self._padding_place = padding_place
        self._layouts: dict[PaddedShape | int, _Layout] = {}
        self._layers_start = self._draw_layout(max_seqs).end
        size = self._layer_layout(PaddedShape(max_seqs, max_tokens, mixed=True)).end
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self._pinned = device.type == "cuda"

    def layer_inputs(self, shape: PaddedShape) -> LayerInputs:
        """Where a step of this shape finds what the layers need."""
        return LayerInputs(**self._layer_layout(shape).on_device(self._buffer))

    def draw_inputs(self, num_sampled: int) -> DrawInputs:
        """Where a step that draws so many tokens, padding included, finds what drawing needs."""
        return DrawInputs(**self._draw_layout(num_sampled).on_device(self._buffer))

    def send(self, inputs: StepInputs, shape: PaddedShape, num_sampled: int) -> None:
        """Copy a step's numbers to the device, in stream order."""
        layers, draw = self._layer_layout(shape), self._draw_layout(num_sampled)
        # Page-locked memory is reused once the copies from it are done: torch's allocator sees to that.
        packed = torch.empty(layers.end, dtype=torch.uint8, pin_memory=self._pinned)
        host = packed.numpy()
        for field in fields(DrawInputs):
            values = inputs.drawn_places if field.name == "drawn_places" else getattr(inputs.sampling, field.name)
            draw.fill(host, field.name, values)
        for field in fields(LayerInputs):
            layers.fill(host, field.name, getattr(inputs, field.name))
        self._buffer[: layers.end].copy_(packed, non_blocking=True)

    def _draw_layout(self, num_sampled: int) -> _Layout:
        layout = self._layouts.get(num_sampled)
        if layout is None:
            layout = self._layouts[num_sampled] = self._new_draw_layout(num_sampled)
        return layout

    def _layer_layout(self, shape: PaddedShape) -> _Layout:
        layout = self._layouts.get(shape)
        if layout is None:
            layout = self._layouts[shape] = self._new_layer_layout(shape)
        return layout

    def _new_draw_layout(self, num_sampled: int) -> _Layout:
        return _Layout(
            0,
            {
                "temperature": (num_sampled, np.float32, 0.0),
                "top_k": (num_sampled, np.int32, 0),
                "top_p": (num_sampled, np.float32, 1.0),
                "min_p": (num_sampled, np.float32, 0.0),
                "seeds": (num_sampled, np.int64, 0),
                "positions": (num_sampled, np.int64, 0),
                "drawn_places": (num_sampled, np.int64, self._padding_place),
            },
        )

    def _new_layer_layout(self, shape: PaddedShape) -> _Layout:
        seqs, tokens = shape.num_seqs, shape.num_tokens
        return _Layout(
            self._layers_start,
            {
                # Where query_start does not rise, there is no sequence.
                "query_start": (seqs + 1, np.int32, None),
                "seq_lens": (seqs, np.int32, 0),
                "slots": (seqs, np.int64, self._padding_slot),
                "sampled_rows": (seqs, np.int64, 0),
                "positions": (tokens, np.int64, 0),
                "slot_mapping": (tokens, np.int64, -1),
                "token_places": (tokens, np.int64, self._padding_place),
            },
        )
