"""Compiles the one part of Triton that needs a C compiler where kernels run: its link to NVIDIA's driver.

It goes to the cache that TRITON_CACHE_DIR names, from where a worker without a compiler takes it.
"""

import sys
from pathlib import Path

from triton import knobs
from triton.backends.nvidia.driver import CudaUtils

try:
    CudaUtils()
except ImportError as error:
    # It is compiled, and cannot be loaded without the driver that only machines with a GPU have.
    print(f"not loaded: {error}")
if not list(Path(knobs.cache.dir).rglob("cuda_utils*.so")):
    sys.exit(f"nothing was compiled into {knobs.cache.dir}")
