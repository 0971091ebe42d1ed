"""Does a prompt given to `make run` arrive as it was typed, and is nothing in it executed?"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMPT = """cost $5 $$ $(shell touch executed) $HOME `touch executed` "q" 'x' # ; %"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def folder(tmp_path):
    """A copy of the Makefile beside an environment whose `pagewire` prints its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "pagewire"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / ".venv" / ".run").touch()
    return tmp_path


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_prompt_arrives_as_it_was_typed(folder, by_environment):
    arguments, environment = ([], {"PROMPT": PROMPT}) if by_environment else ([f"PROMPT={PROMPT}"], {})
    command = ["make", "--silent", "run", "ONCE=1", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-3:] == ["--ask", PROMPT, "--once"]
    assert not (folder / "executed").exists()
