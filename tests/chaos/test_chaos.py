"""The short form of the chaos suite, for every run of the tests."""

from pathlib import Path

import pytest

from tests.chaos.run import Plan, run_chaos
from tests.chaos.service import VICTIMS

# Half a minute on two free cores. The limit is for machines that do much else.
pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


def test_streams_are_intact_whatever_dies(demo_model: Path, short_path: Path) -> None:
    plan = Plan(
        num_kills=8,
        num_streams=16,
        max_tokens=48,
        victims=tuple(VICTIMS),
        seed=17,
        moments=("after a result", "two at once", "successor starts", "streams come back"),
    )
    result = run_chaos(demo_model, short_path, plan)
    assert result.wrong == []
    assert result.num_kills >= plan.num_kills
    assert result.num_intact == result.num_streams > 0
    assert {victim for event in result.events for victim in event.victim.split("+")} == set(VICTIMS)
