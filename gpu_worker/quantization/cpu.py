"""How does a CPU multiply float32 activations by float32 or float16 weights fastest?"""

import ctypes

import torch

from gpu_worker.quantization.linear_method import LinearOp

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class _Linear(ctypes.Structure):
    """struct linear of cpu_linear.c."""

    _fields_ = (
        ("x", _POINTER),
        ("bias", _POINTER),
        ("weight", _POINTER),
        ("out", _POINTER),
        ("rows", _INT),
        ("in_features", _INT),
        ("out_features", _INT),
        ("is_half", _INT),
    )


class CpuLinearMethod:
    """C kernels over weights laid out in panels, kept in float32 or rounded to float16.

    A row's result does not depend on how many other rows are multiplied with it.
    """

    compute_dtype = torch.float32
    weight_dtype = torch.float32

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        """Keep weights in `dtype`, float32 or float16, for a library that `load_native` gave."""
        assert dtype in (torch.float32, torch.float16)
        self.table_dtype = dtype
        self._multiply = library.pagewire_linear
        self._multiply.argtypes = (ctypes.POINTER(_Linear),)
        self._multiply.restype = None
        library.pagewire_linear_panel.restype = _INT
        self._panel: int = library.pagewire_linear_panel()

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        return self.pack(weight, None)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        out_features, in_features = weight.shape
        panels = self._lay_out(weight)
        multiply, is_half = self._multiply, int(self.table_dtype == torch.float16)

        def run(x: torch.Tensor) -> torch.Tensor:
            assert x.dtype is torch.float32
            assert x.is_contiguous()
            assert x.shape[1] == in_features
            rows = x.shape[0]
            out = torch.empty((rows, out_features))
            bias_at = None if bias is None else bias.data_ptr()
            multiply(
                _Linear(
                    x.data_ptr(), bias_at, panels.data_ptr(), out.data_ptr(), rows, in_features, out_features, is_half
                )
            )
            return out

        return run

    def _lay_out(self, weight: torch.Tensor) -> torch.Tensor:
        """[out_features, in_features] -> [num_panels, in_features, panel], filled up with zeros."""
        out_features, in_features = weight.shape
        num_panels = -(-out_features // self._panel)
        panels = torch.zeros((num_panels, in_features, self._panel), dtype=self.table_dtype)
        whole = out_features // self._panel
        split = weight[: whole * self._panel].view(whole, self._panel, in_features)
        panels[:whole] = split.transpose(1, 2)
        rest = weight[whole * self._panel :]
        panels[whole:, :, : rest.shape[0]] = rest.t()
        return panels
