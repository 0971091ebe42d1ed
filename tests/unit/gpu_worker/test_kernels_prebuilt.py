"""Which of the C kernels that come with an image does a CPU get, and do they work?"""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_worker.kernels import prebuilt
from gpu_worker.kernels.native import compile_kernels
from gpu_worker.kernels.prebuilt import find_prebuilt
from tests.fakes.patience import PATIENCE_S

V3 = "avx2 bmi1 bmi2 f16c fma movbe popcnt sse4_1 sse4_2 ssse3"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def find(tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "x86_64")
    folder, cpuinfo = tmp_path / "prebuilt", tmp_path / "cpuinfo"

    def found(flags: str, *there: str) -> str | None:
        folder.mkdir(exist_ok=True)
        for name in there:
            (folder / f"{name}.so").touch()
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {V4}\n")
        path = find_prebuilt(folder, cpuinfo)
        return path.stem if path is not None else None

    return found


@pytest.mark.parametrize(("flags", "expected"), [(V4, "x86-64-v4"), (V3, "x86-64-v3"), ("sse2", None)])
def test_a_cpu_gets_the_newest_that_it_can_run(find, flags, expected):
    assert find(flags, "x86-64-v4", "x86-64-v3", "x86-64-v2") == expected


def test_what_is_not_there_is_not_taken(find):
    assert find(V4, "x86-64-v2") == "x86-64-v2"
    assert find("sse2") is None


def test_without_a_folder_there_is_none(tmp_path):
    assert find_prebuilt(tmp_path / "none") is None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for x86-64")
def test_compiled_kernels_share_the_runtime_of_torch_and_need_no_compiler(tmp_path):
    compile_kernels(tmp_path / "x86-64-v2.so", "x86-64-v2")
    assert ctypes.CDLL(str(tmp_path / "x86-64-v2.so")).pagewire_rms_norm
    program = (
        "import sys, pathlib; from gpu_worker.kernels import native, prebuilt;"
        "native.find_prebuilt = lambda: pathlib.Path(sys.argv[1]);"
        "native.shutil.which = lambda name: None;"
        "native.load_native(pathlib.Path('/nowhere')).pagewire_rms_norm;"
        "print(len(native.mapped_openmp()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x86-64-v2.so")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not Path("/nowhere").exists()
