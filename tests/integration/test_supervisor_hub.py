"""Is a model fetched from a Hub once, without what is not needed, and found again offline?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.fake_hub import REPO, fake_hub
from tests.fakes.patience import PATIENCE_S

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"not wanted" * 1000,
    "README.md": b"not wanted",
    "tiny.Q4_1.gguf": b"GGUF....",
}
PROGRAM = """
import sys
from pathlib import Path
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.model_source import resolve_model
try:
    source = resolve_model(sys.argv[1], Path("cache"), Path("scratch"), lambda *_: None)
except ServiceError as error:
    sys.exit(str(error))
print(source.path, source.name)
"""


@pytest.fixture
def resolve(tmp_path):
    """Resolve a spec in a process of its own, against a Hub; gives path and name."""

    def run(spec, endpoint):
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, spec], capture_output=True, text=True, timeout=PATIENCE_S, env=environment
        )
        return done.stdout.split() if done.returncode == 0 else done.stderr.strip()

    return run


def test_a_repository_is_fetched_without_what_is_not_needed(resolve):
    with fake_hub(FILES) as (endpoint, _):
        path, name = resolve(REPO, endpoint)
    assert name == REPO
    assert sorted(entry.name for entry in Path(path).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (Path(path) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert resolve(REPO, endpoint) == [path, name]


def test_one_gguf_file_is_fetched_alone(resolve):
    with fake_hub(FILES) as (endpoint, asked):
        path, name = resolve(f"{REPO}/tiny.Q4_1.gguf", endpoint)
    assert (Path(path).read_bytes(), name) == (b"GGUF....", "tiny.Q4_1")
    assert not any("safetensors" in request for request in asked)


@pytest.mark.parametrize("spec", ["org/other", f"{REPO}/other.gguf"])
def test_what_the_hub_does_not_have_is_said(resolve, spec):
    with fake_hub(FILES) as (endpoint, _):
        message = resolve(spec, endpoint)
    assert f"cannot fetch {'/'.join(spec.split('/')[:2])} from the Hub" in message
    assert "\n" not in message


@pytest.fixture
def fetch(tmp_path):
    """Run the program that an init container runs; gives the link, and what it said if it failed."""

    def run(endpoint, *flags):
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        link = tmp_path / "model"
        command = [sys.executable, "-m", "scheduler_service.supervisor.fetch", *flags, "--link", str(link)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
        return link, done.stderr if done.returncode else ""

    return run


def test_fetch_links_to_a_repository_and_to_what_a_gateway_needs_of_it(fetch):
    with fake_hub(FILES) as (endpoint, asked):
        link, _ = fetch(endpoint, "--repo", REPO, "--revision", "main", "--tokenizer-only")
        assert sorted(path.name for path in link.iterdir()) == ["config.json", "tokenizer.json"]
        assert not any("safetensors" in request for request in asked if "resolve" in request)
        link, failure = fetch(endpoint, "--repo", REPO)
    assert not failure
    assert (link / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_fetch_links_to_one_file(fetch):
    with fake_hub(FILES) as (endpoint, _):
        link, _ = fetch(endpoint, "--repo", REPO, "--file", "tiny.Q4_1.gguf")
    assert link.read_bytes() == b"GGUF...."


def test_fetch_asks_for_the_revision_and_says_what_fails(fetch):
    with fake_hub(FILES) as (endpoint, asked):
        fetch(endpoint, "--repo", REPO, "--revision", "v1")
        assert any("/revision/v1" in request for request in asked)
        _, failure = fetch(endpoint, "--repo", "org/other")
    assert failure.splitlines()[-1].startswith("fetch: cannot fetch org/other from the Hub")
