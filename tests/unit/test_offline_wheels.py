"""Does the script that collects wheels ask for what a host needs, and for PyTorch only where it is wanted?"""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offline_wheels.sh"

# Runs programs that are given on standard input, and shows what pip is called with instead of calling it.
PYTHON = f"""#!/usr/bin/env bash
if [[ $1 == - ]]; then exec {sys.executable} "$@"; fi
for argument; do if [[ -e $argument && $argument == /dev/fd/* ]]; then cat "$argument"; else echo "$argument"; fi; done
"""


@pytest.fixture
def collect(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(*arguments):
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=PATIENCE_S)

    return run


@pytest.mark.parametrize(("flags", "has_torch"), [([], False), (["--with-torch"], True)])
def test_wheels_of_every_process_are_asked_for(collect, tmp_path, flags, has_torch):
    done = collect("3.12", str(tmp_path / "wheels"), "--arch", "aarch64", *flags)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert {"3.12", "manylinux_2_28_aarch64"} <= set(words)
    names = {word.split(">")[0] for word in words if ">=" in word}
    assert {"grpcio", "tokenizers", "pyzmq", "safetensors", "smg-grpc-proto", "huggingface_hub"} <= names
    assert ("torch" in names) == has_torch
    assert (tmp_path / "wheels").is_dir()


@pytest.mark.parametrize("arguments", [[], ["3.12"], ["python3", "x"], ["3.12", "x", "--no-such"]])
def test_a_wrong_command_line_shows_the_right_one(collect, arguments):
    done = collect(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: benchmarks/offline_wheels.sh PYTHON_VERSION FOLDER")
