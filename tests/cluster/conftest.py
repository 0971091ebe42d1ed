"""Every test of this folder runs in a sandbox of its own, by another pytest; fixtures are made there as well."""

import sys

import pytest

from tests.cluster import sandbox
from tests.fakes.chart import HELM_4
from tests.fakes.helm_tool import fetch_helm


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Hand a test on to the sandbox, unless this is it."""
    if sandbox.is_inside():
        return None
    if reason := sandbox.why_not():
        pytest.skip(reason)
    fetch_helm(HELM_4)  # nothing can be fetched from inside
    flags = ("-p", "no:cacheprovider", "-p", "no:xdist", "-q", "--no-header")
    done = sandbox.run(
        [sys.executable, "-m", "pytest", *flags, f"{pyfuncitem.config.rootpath}/{pyfuncitem.nodeid}"], capture=True
    )
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)
    return True
