"""The short form of the hostile suite, for every run of the tests."""

import pytest

from tests.hostile.attacks import ATTACKS, run_attacks
from tests.hostile.fuzz import Plan, run_fuzz
from tests.hostile.service import HostileService

_SIZES = {name: sizes.short for name, sizes in ATTACKS.items() if sizes.short is not None}


def test_no_message_harms_the_service(service: HostileService) -> None:
    result = run_fuzz(service, Plan(num_cases=2000, seed=1))
    assert result.wrong == []
    assert result.num_cases == 2000
    outcomes = {outcome for _, outcome in result.outcomes}
    assert {"OK", "INVALID_ARGUMENT", "CANCELLED", "HTTP 200", "HTTP 400"} <= outcomes


@pytest.mark.parametrize("name", _SIZES)
def test_no_attack_harms_the_service(service: HostileService, name: str) -> None:
    (report,) = run_attacks(service, {name: _SIZES[name]})
    assert report.wrong == []
