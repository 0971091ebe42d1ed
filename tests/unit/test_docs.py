"""Do the tables of docs/ name files, functions and tests that exist?"""

import ast
import json
import re
from pathlib import Path

import pytest

from scheduler_service.gateway.auth.key_file import read_key_file

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| \w+ \| `([\w/.]+)` `([\w.]+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
PROOFS = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/grpc.md").read_text())


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


def test_every_manner_has_a_proof():
    table = (ROOT / "docs/grpc.md").read_text().partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    assert all("::test_" in row or "| the same |" in row for row in rows)


@pytest.mark.parametrize(("file", "name"), PROOFS)
def test_the_proofs_exist(file, name):
    names = names_in(ROOT / "tests/integration" / file)
    assert name in {full.rpartition(".")[2] for full in names}


def test_the_published_service_config_is_the_one_that_clients_use():
    shown = re.search(r"```json\n(.*?)```", (ROOT / "docs/grpc.md").read_text(), re.DOTALL)
    assert shown is not None
    used = (ROOT / "client/pagewire_client/service_config.json").read_text()
    assert json.loads(shown[1]) == json.loads(used)


def test_the_key_file_in_the_docs_can_be_used(tmp_path):
    shown = re.search(r"```toml\n(.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "keys.toml").write_text(shown[1])
    assert [entry.name for entry in read_key_file(tmp_path / "keys.toml")] == ["search", "operator"]
