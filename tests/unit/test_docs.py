"""Does the walk of one request in docs/architecture.md name files and functions that exist?"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| \w+ \| `([\w/.]+)` `([\w.]+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods that a file defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_the_walk_is_there():
    assert len(ROWS) >= 15


@pytest.mark.parametrize(("file", "name"), ROWS)
def test_the_walk_names_what_exists(file, name):
    assert name in names_in(ROOT / file)
