"""Are tokenizer, special tokens and chat template of a model directory found as transformers finds them?"""

import json
from pathlib import Path

import pytest
from tokenizers import processors

from scheduler_service.gateway.exceptions import ModelFileError
from scheduler_service.gateway.served_model import read_served_model
from tests.fakes.tiny_model import BOS, CHAT_TEMPLATE, EOS, byte_level_tokenizer, write_tiny_model

USER = [{"role": "user", "content": "hello"}]


def test_directory_gives_tokenizer_sizes_and_special_tokens(tmp_path: Path) -> None:
    model = read_served_model(write_tiny_model(tmp_path), "tiny")
    assert (model.name, model.architecture, model.max_model_len) == ("tiny", "tiny", 512)
    assert model.tokenizer.vocab_size == byte_level_tokenizer().get_vocab_size()
    assert model.tokenizer.special_tokens == {"bos_token": BOS, "eos_token": EOS}
    assert model.tokenizer.encode("hello", add_special_tokens=True) == byte_level_tokenizer().encode("hello").ids


def test_directory_adds_bos_where_its_configuration_says_so(tmp_path: Path) -> None:
    tokenizer = read_served_model(write_tiny_model(tmp_path, add_bos_token=True), "tiny").tokenizer
    ids = tokenizer.encode("hello", add_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == BOS + "hello"
    assert tokenizer.encode("hello", add_special_tokens=False) == ids[1:]


def test_directory_adds_no_bos_where_its_configuration_forbids_it(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    for forbidden in (False, True):
        write_tiny_model(tmp_path, **({"add_bos_token": False} if forbidden else {}))
        backend.save(str(tmp_path / "tokenizer.json"))
        ids = read_served_model(tmp_path, "tiny").tokenizer.encode("hello", add_special_tokens=True)
        assert (backend.token_to_id(BOS) in ids) is not forbidden


def test_directory_neither_cuts_nor_pads(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    backend = byte_level_tokenizer()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_served_model(tmp_path, "tiny").tokenizer
    assert len(tokenizer.encode("x" * 20, add_special_tokens=True)) == 20


@pytest.mark.parametrize("kind", ["config", "named", "json", "jinja"])
def test_directory_finds_the_chat_template(tmp_path: Path, kind: str) -> None:
    named = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": CHAT_TEMPLATE}]
    in_config = {"config": CHAT_TEMPLATE, "named": named}.get(kind, "wrong")
    write_tiny_model(tmp_path, chat_template=in_config)
    if kind == "json":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    if kind == "jinja":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "wrong"}))
        (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    template = read_served_model(tmp_path, "tiny").chat_template
    assert template is not None
    assert template.render(USER) == "<|turn|>user\nhello<|end|>\n<|turn|>assistant\n"


def test_directory_does_without_optional_files(tmp_path: Path) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    model = read_served_model(tmp_path, "bare")
    assert (model.architecture, model.max_model_len, model.chat_template) == ("", 0, None)


def test_directory_serves_without_a_chat_template_that_is_broken(tmp_path: Path) -> None:
    assert read_served_model(write_tiny_model(tmp_path, chat_template="{% if %}"), "tiny").chat_template is None


def test_directory_takes_special_tokens_from_their_own_file(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, bos_token=None, eos_token=None)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": BOS, "eos_token": {"content": EOS}}))
    assert read_served_model(tmp_path, "tiny").tokenizer.special_tokens == {"bos_token": BOS, "eos_token": EOS}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_directory_with_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    write_tiny_model(tmp_path)
    content = (tmp_path / name).read_text()
    (tmp_path / name).write_text(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=rf"{name} .*download it again"):
        read_served_model(tmp_path, "tiny")


def test_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no tokenizer\.json"):
        read_served_model(tmp_path, "tiny")


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_served_model(tmp_path / "absent", "tiny")
