"""The short form of the chaos suite, for every run of the tests."""

from pathlib import Path

import pytest

from tests.chaos.run import Plan, run_chaos

pytestmark = pytest.mark.model


def test_streams_are_intact_whatever_dies(demo_model: Path, tmp_path: Path) -> None:
    plan = Plan(num_kills=3, num_streams=16, max_tokens=48, victims=("worker",))
    result = run_chaos(demo_model, tmp_path, plan, "--cpu-memory-gib", "0.5", "--log-level", "error")
    assert result.wrong == []
    assert len(result.kills) == 3
    assert result.num_intact == result.num_streams > 0
