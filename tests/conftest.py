"""Fixtures that every kind of test shares."""

import os
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

from scheduler_service.supervisor.demo_model import fetch_demo

# Read when triton is first imported, by whichever test: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell that runs the tests in the background has them, and every process they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's GGUF file, downloaded once and then kept in the user's cache."""
    cache = Path.home() / ".cache" / "pagewire"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        return fetch_demo(cache, Path(scratch), lambda stage, done, total: None)
