"""The Dockerfile, instruction by instruction, and what its RUN lines do outside a container."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it: each instruction's word and the rest of it."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        """The rests of the instructions that begin with a word."""
        return [rest for found, rest in self.instructions if found == word]


def read_stages() -> dict[str, Stage]:
    """The stages by name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    current = Stage("", "")
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(name, parent)
        else:
            current.instructions.append((word, rest.strip()))
    return stages


class Install:
    """Runs the steps of a stage under a folder, which stands for the root of the file system.

    Args:
        root: the folder.
        python: what the base image calls python.
    """

    def __init__(self, root: Path, python: str) -> None:
        self._root = root
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
        (root / "bin" / "python").chmod(0o755)
        self.environment = root / "opt" / "pagewire"

    def run(self, stage: Stage, instead: Mapping[str, Callable[[], None]] = MappingProxyType({})) -> None:
        """Do what the stage's COPY and RUN lines say; for a RUN line with one of these texts in it, do this instead."""
        arguments = dict(rest.partition("=")[::2] for rest in stage.of("ARG"))
        for word, rest in stage.instructions:
            if word == "COPY" and not rest.startswith("--from"):
                self._copy(rest.split())
            elif word == "RUN" and "apt-get" not in rest:
                replaced = [do for text, do in instead.items() if text in rest]
                for do in replaced or [partial(self._run, rest, arguments)]:
                    do()

    def _copy(self, paths: list[str]) -> None:
        *sources, target = paths
        for source in sources:
            place = self._root / "src" / (target + Path(source).name if target.endswith("/") else target)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(ROOT / source)

    def _run(self, line: str, arguments: dict[str, str]) -> None:
        # Bytecode takes pip half of its time, and nobody looks at it here.
        command = re.sub(r"--mount=\S+\s*", "", line).replace(" install ", " install --no-compile ")
        command = re.sub(r"(?<=[\s=])/(opt|wheels|tmp)\b", rf"{self._root}/\1", f" {command}")
        (self._root / "tmp").mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {**arguments, "PATH": f"{self._root / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-e", "-c", command],
            cwd=self._root / "src",
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
