"""Does a model spec lead to the right files, and a wrong one to a line that says what to do?"""

import pytest

from gpu_worker.models.hf_config import read_hf_config
from scheduler_service.gateway.served_model import read_served_model
from scheduler_service.supervisor.dummy_model import SHAPES
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.model_source import resolve_model


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """Resolve a spec offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return lambda spec: resolve_model(str(spec), tmp_path / "cache", tmp_path / "scratch", lambda *_: None)


def test_a_gguf_file_is_taken_as_it_is(resolve, tmp_path):
    (tmp_path / "tiny.Q4_1.gguf").write_bytes(b"GGUF....")
    source = resolve(tmp_path / "tiny.Q4_1.gguf")
    assert (source.path, source.name) == (tmp_path / "tiny.Q4_1.gguf", "tiny.Q4_1")


def test_a_directory_is_taken_as_it_is(resolve, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    source = resolve(f"{tmp_path}/tiny/")
    assert (source.path, source.name) == (tmp_path / "tiny", "tiny")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gguf", b"", "is empty"),
        ("a.gguf", b"PK\x03\x04", "is not a GGUF file"),
        ("a.txt", b"hello", "is not a GGUF"),
    ],
)
def test_another_file_is_refused(resolve, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ServiceError, match=message):
        resolve(tmp_path / name)


def test_a_directory_without_config_is_refused(resolve, tmp_path):
    with pytest.raises(ServiceError, match=r"config\.json"):
        resolve(tmp_path)


@pytest.mark.parametrize("spec", ["/no/model", "./model.gguf", "model.gguf", "~/no-such-model", "a/b/c/d"])
def test_a_path_that_does_not_exist_is_named(resolve, spec):
    with pytest.raises(ServiceError, match=f"there is no model at {spec}: check the path"):
        resolve(spec)


@pytest.mark.parametrize("spec", ["org/name", "org/name/file.gguf"])
def test_a_hub_id_offline_says_what_to_do(resolve, spec):
    with pytest.raises(ServiceError, match=r"cannot fetch org/name from the Hub .* give their directory as --model"):
        resolve(spec)


@pytest.mark.parametrize("spec", ["", "two words", "name-alone", "a//b"])
def test_nonsense_is_refused(resolve, spec):
    with pytest.raises(ServiceError, match=r"is no model: give a GGUF file|no config"):
        resolve(spec)


def test_a_dummy_model_has_a_text_for_every_token_and_no_weights(resolve, tmp_path):
    source = resolve("dummy:qwen3-0.6b")
    assert (source.name, source.has_weights) == ("qwen3-0.6b", False)
    served = read_served_model(source.path, source.name)
    assert (served.architecture, served.max_model_len, served.tokenizer.vocab_size) == ("qwen3", 40960, 151936)
    text = "naïve 中"
    assert (
        served.tokenizer.decode(served.tokenizer.encode(text, add_special_tokens=True), skip_special_tokens=True)
        == text
    )
    assert served.tokenizer.decode([300, 151935], skip_special_tokens=True) == " 300 151935"
    assert {path.name for path in source.path.iterdir()} == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("name", SHAPES)
def test_dummy_shapes_are_models_that_workers_know(resolve, name):
    config = read_hf_config(resolve(f"dummy:{name}").path)
    assert config.qk_norm
    assert config.vocab_size == SHAPES[name]["vocab_size"] > 10_000


def test_an_unknown_dummy_model_names_those_there_are(resolve):
    with pytest.raises(ServiceError, match=r"no dummy model 'x': there are qwen3-0\.6b, qwen3-8b, tiny"):
        resolve("dummy:x")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("~no-such-user/model.gguf", "no such home directory is known; check the path"),
        ("/" + "x" * 300, "cannot read the model at /x.*: File name too long; check path and permissions"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_one_clear_line(resolve, spec, message):
    with pytest.raises(ServiceError, match=message):
        resolve(spec)


def test_a_local_model_needs_no_cache(resolve, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF....")
    (tmp_path / "cache").touch()
    assert resolve(tmp_path / "tiny.gguf").name == "tiny"
    with pytest.raises(ServiceError, match=r"cannot keep the demo model in .*cache: .*; set XDG_CACHE_HOME"):
        resolve("demo")
