"""Fixtures that every kind of test shares."""

import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import hypothesis
import pytest

from scheduler_service.supervisor.demo_model import fetch_demo

# Read when triton is first imported, by whichever test: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell that runs the tests in the background has them, and every process they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing that its user has set up changes what a process does that a test starts.
for name in [name for name in os.environ if name.startswith(("PAGEWIRE_", "HF_"))]:
    del os.environ[name]
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
# No proxy leads to this machine itself.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))

# How long an example takes says more about the machine than about the code. The same examples in every run;
# --hypothesis-seed=N looks at others.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for socket names, as tmp_path may not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def _numbers_are_those_of_the_test(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers in every run, whichever tests ran before it."""
    seed = crc32(request.node.nodeid.encode())
    random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's GGUF file, downloaded once and then kept in the user's cache."""
    cache = Path.home() / ".cache" / "pagewire"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        return fetch_demo(cache, Path(scratch), lambda stage, done, total: None)
