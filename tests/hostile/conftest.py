"""One service for all attacks: what one of them leaves, the next one would find."""

from collections.abc import Iterator

import pytest

from tests.hostile.service import HostileService


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileService]:
    with HostileService(tmp_path_factory.mktemp("h")) as running:
        yield running
