"""The C kernels for tests, compiled once into the same cache as in production."""

import ctypes
from functools import cache
from pathlib import Path

from gpu_worker.kernels.native import load_native

CACHE_DIR = Path.home() / ".cache" / "pagewire"


@cache
def native() -> ctypes.CDLL:
    """The library; fails where there is no C compiler."""
    return load_native(CACHE_DIR)
