"""How do the C kernels get from their source to functions that can be called?

They are compiled on first use with the C compiler at hand and kept in a cache folder, under a name that changes with
the source, the compiler, its flags and the CPU: the code is made for this CPU and runs on no other. An installation
that was given compiled ones (`prebuilt.py`) needs no compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch  # noqa: F401 - loads the OpenMP runtime that the kernels are linked to

from gpu_worker.kernels.prebuilt import find_prebuilt

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_SOURCES = ("cpu_fused.c", "cpu_attention.c", "cpu_linear.c")
_HEADERS = ("cpu_math.h",)
_COMPILERS = ("cc", "gcc", "clang")
# Nothing of the -ffast-math family: a NaN must come out where it goes in, and no object may change the process's
# rounding of denormal numbers when it is loaded.
_COMPILE_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
_THIS_CPU = "native"
_COMPILE_TIMEOUT_S = 120


class NativeKernelsError(Exception):
    """The C kernels cannot be had on this machine; the message says why."""


def load_native(cache_dir: Path) -> ctypes.CDLL:
    """Load the C kernels, compiled before or now. Any number of processes may do so at once.

    Raises:
        NativeKernelsError: there is no C compiler, or it fails.
    """
    path = find_prebuilt() or _compiled(cache_dir)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeKernelsError(f"{path}: {error}") from error
    runtimes = mapped_openmp()
    if len(runtimes) > 1:
        logger.warning("two OpenMP runtimes share the cores, which is slow runtimes=%s", runtimes)
    return library


def compile_kernels(target: Path, architecture: str) -> None:
    """Compile the C kernels for CPUs of an architecture, as the compiler's -march names it.

    Raises:
        NativeKernelsError: there is no C compiler, or it fails.
    """
    _compile(_find_compiler(), mapped_openmp(), target, architecture)


def mapped_openmp() -> list[Path]:
    """The GNU OpenMP runtimes that this process has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/libgomp" in line}
    return sorted(Path(path) for path in paths)


def _compiled(cache_dir: Path) -> Path:
    """The kernels in the cache, where they are put if they are not there."""
    compiler, openmp = _find_compiler(), mapped_openmp()
    path = cache_dir / f"kernels-{_cache_key(compiler, openmp)}.so"
    try:
        if not path.exists():
            _compile(compiler, openmp, path, _THIS_CPU)
    except OSError as error:
        raise NativeKernelsError(f"{path}: {error}") from error
    return path


def _find_compiler() -> str:
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise NativeKernelsError(f"no C compiler found; looked for {', '.join(_COMPILERS)}")


def _cache_key(compiler: str, openmp: list[Path]) -> str:
    digest = hashlib.sha256(_run((compiler, "--version"), _FOLDER).encode())
    for name in _SOURCES + _HEADERS:
        digest.update((_FOLDER / name).read_bytes())
    digest.update(repr((_COMPILE_FLAGS, _THIS_CPU, _cpu(), openmp)).encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """What the CPU is and can do."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))


def _compile(compiler: str, openmp: list[Path], target: Path, architecture: str) -> None:
    """Compile in a folder of our own beside the target, then move the finished file there in one step."""
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        sources = [str(_FOLDER / name) for name in _SOURCES]
        objects = [Path(name).with_suffix(".o").name for name in _SOURCES]
        # torch brings its own OpenMP runtime, under a name that differs between builds. Linked to that very file, the
        # kernels share its threads; a second runtime would compete for the cores.
        runtime = [str(path) for path in openmp[:1]] or ["-fopenmp"]
        _run((compiler, *_COMPILE_FLAGS, f"-march={architecture}", "-c", *sources), Path(folder))
        _run((compiler, "-shared", "-o", target.name, *objects, *runtime, "-lm"), Path(folder))
        os.replace(Path(folder) / target.name, target)
    logger.info("kernels compiled path=%s seconds=%.1f", target, time.monotonic() - started)


def _run(command: tuple[str, ...], folder: Path) -> str:
    """What a compiler command prints."""
    try:
        result = subprocess.run(  # noqa: S603 - a compiler from the search path, and arguments of this file
            command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NativeKernelsError(f"{command[0]} took more than {_COMPILE_TIMEOUT_S} s") from error
    if result.returncode != 0:
        first = (result.stderr.strip() or "no message").splitlines()[0]
        raise NativeKernelsError(f"{command[0]} failed: {first}")
    return result.stdout
