"""How the C kernels are compiled, cached and shared, and what happens where they cannot be had."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu_worker.kernels import native
from gpu_worker.kernels.native import NativeKernelsError, load_native, mapped_openmp
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.kernels.select import find_native, select_kernels
from tests.unit.gpu_worker.native_kernels import CACHE_DIR

CPU = torch.device("cpu")


def test_kernels_share_the_openmp_runtime_of_torch() -> None:
    before = mapped_openmp()
    load_native(CACHE_DIR)
    assert len(before) == 1
    assert mapped_openmp() == before


def test_load_native_serves_several_processes_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, gpu_worker.kernels.native as native;"
        "native.load_native(pathlib.Path(sys.argv[1])).pagewire_rms_norm"
    )
    processes = [subprocess.Popen((sys.executable, "-c", program, str(tmp_path))) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


def test_load_native_does_not_compile_twice(tmp_path: Path) -> None:
    load_native(tmp_path)
    (path,) = tmp_path.iterdir()
    compiled_at = path.stat().st_mtime_ns
    load_native(tmp_path)
    assert path.stat().st_mtime_ns == compiled_at


def test_find_native_without_a_compiler_warns_and_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        library = find_native(CPU, tmp_path)
    assert library is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no C compiler found" in caplog.text
    assert isinstance(select_kernels(CPU, library), ReferenceKernels)


def test_load_native_with_a_failing_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(NativeKernelsError, match="/bin/false failed"):
        load_native(tmp_path)


def test_load_native_with_a_damaged_cache_says_which_file(tmp_path: Path) -> None:
    load_native(tmp_path)
    (path,) = tmp_path.iterdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / path.name).write_bytes(b"not a library")
    with pytest.raises(NativeKernelsError, match=f"damaged/{path.name}"):
        load_native(damaged)


def test_find_native_is_for_the_cpu_only(tmp_path: Path) -> None:
    assert find_native(torch.device("cuda"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
