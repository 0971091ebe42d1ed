"""Which compiled C kernels came with this installation, and which of them run on this CPU?

`python -m gpu_worker.kernels.prebuilt` compiles them beside this file, for an image that shall have no compiler: for
several generations of CPUs, of which the newest that the CPU belongs to is taken.
"""

import logging
import platform
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "prebuilt"
_CPUINFO = Path("/proc/cpuinfo")
# By machine, the newest first: the compiler's name of a generation, and flags of /proc/cpuinfo that tell it from the
# one before.
_GENERATIONS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "x86_64": (
        ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "f16c"})),
        ("x86-64-v3", frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})),
        ("x86-64-v2", frozenset({"popcnt", "sse4_1", "sse4_2", "ssse3"})),
    ),
    "aarch64": (("armv8.2-a+fp16", frozenset({"asimdhp", "atomics"})), ("armv8-a", frozenset())),
}


def find_prebuilt(folder: Path = _FOLDER, cpuinfo: Path = _CPUINFO) -> Path | None:
    """The best library for this CPU; None if none came along that it can run."""
    flags = _flags(cpuinfo) if folder.is_dir() else frozenset()
    for generation, needed in _GENERATIONS.get(platform.machine(), ()):
        path = folder / f"{generation}.so"
        if needed <= flags and path.exists():
            return path
    return None


def build_all(folder: Path = _FOLDER) -> list[Path]:
    """Compile for every generation of this kind of machine.

    Raises:
        NativeKernelsError: there is no C compiler, or it fails.
    """
    from gpu_worker.kernels.native import compile_kernels  # noqa: PLC0415 (which asks this module, and imports torch)

    built = []
    for generation, _ in _GENERATIONS.get(platform.machine(), ()):
        built.append(folder / f"{generation}.so")
        compile_kernels(built[-1], generation)
    return built


def _flags(cpuinfo: Path) -> frozenset[str]:
    if not cpuinfo.exists():
        return frozenset()
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    lines = (line.partition(":")[2] for line in first if line.startswith(("flags", "Features")))
    return frozenset(" ".join(lines).split())


def main() -> int:
    """Compile, and say what."""
    for path in build_all():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
