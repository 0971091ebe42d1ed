"""Does the script that measures a GPU come to its end? On a CPU, with a shape that measures nothing."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu_table
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def run(*flags):
    """One run to its end."""
    command = [sys.executable, "-m", "benchmarks.gpu_table", "--smoke", "--gateways", "2", "--client-processes", "2"]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S)


def test_smoke_run_has_every_row(tmp_path):
    done = run("--json", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "table.json").read_text())
    figures = [row["figure"] for row in report["rows"]]
    assert len(figures) == 12
    assert all(row["pagewire"] > 0 for row in report["rows"])
    assert all(figure in done.stdout for figure in figures)
    assert report["environment"]["num_gateway_processes"] == 2


def test_full_run_names_figures_as_its_peers_do():
    scale = gpu_table.FULL
    streams = [f"{n} stream{'s' if n > 1 else ''}, {scale.small}, tok/s" for n, _ in scale.streams]
    assert set(streams) <= gpu_table.PEERS.keys()


def test_a_service_that_cannot_start_is_a_failure_that_is_told(tmp_path):
    done = run("--device", "cuda", "--json", str(tmp_path / "table.json"))
    assert done.returncode == 1
    details = json.loads((tmp_path / "table.json").read_text())["details"]
    assert ["error" in detail for detail in details] == [True, True]
