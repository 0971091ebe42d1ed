"""Do the files that a remote reader gets make the tokenizer that the gateway itself has?"""

import io
import json
import zipfile
from pathlib import Path

import pytest
import tokenizers

from scheduler_service.gateway.served_model import ServedModel, read_served_model
from scheduler_service.gateway.vllm_engine import tokenizer_files
from tests.fakes.gguf_file import CONTROL, write_byte_level_gguf, write_sentencepiece_gguf
from tests.fakes.tiny_model import CHAT_TEMPLATE, write_tiny_model

TEXTS = ["hello 123", " hello  world\n", "Ünïcödé 中文 😀", "<|bos|> is no text", ""]


def byte_level(tmp_path: Path) -> Path:
    special = [("<|bos|>", CONTROL), ("<|eos|>", CONTROL)]
    return write_byte_level_gguf(tmp_path / "m.gguf", pre="llama-bpe", special=special)


def sentencepiece(tmp_path: Path) -> Path:
    return write_sentencepiece_gguf(tmp_path / "m.gguf", [("▁", -1.0), ("h", -2.0), ("▁h", -3.0), ("e", -4.0)])


def directory(tmp_path: Path) -> Path:
    # What the directory's tokenizer_config.json says changes what its tokenizer.json does.
    return write_tiny_model(tmp_path / "m", add_bos_token=True, chat_template=None, model_max_length=99)


def files_of(model: ServedModel) -> dict[str, str]:
    archive = zipfile.ZipFile(io.BytesIO(tokenizer_files.tokenizer_archive(model)))
    return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize("write", [byte_level, sentencepiece, directory])
def test_the_tokenizer_is_the_same(tmp_path: Path, write) -> None:
    model = read_served_model(write(tmp_path), "m")
    files = files_of(model)
    theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special).ids
            assert ids == model.tokenizer.encode(text, add_special_tokens=special)
            assert theirs.decode(ids) == model.tokenizer.decode(ids, skip_special_tokens=True)
    config = json.loads(files["tokenizer_config.json"])
    assert {role: config[role] for role in model.tokenizer.special_tokens} == model.tokenizer.special_tokens


def test_a_gguf_file_has_a_config_too(tmp_path: Path) -> None:
    config = json.loads(files_of(read_served_model(byte_level(tmp_path), "m"))["config.json"])
    assert (config["model_type"], config["max_position_embeddings"]) == ("llama", 2048)


def test_what_a_directory_says_is_kept_and_a_template_of_its_own_file_is_in_it(tmp_path: Path) -> None:
    path = directory(tmp_path)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    files = files_of(read_served_model(path, "m"))
    config = json.loads(files["tokenizer_config.json"])
    assert (config["model_max_length"], config["chat_template"]) == (99, CHAT_TEMPLATE)
    assert json.loads(files["config.json"]) == json.loads((path / "config.json").read_text())


def test_the_same_tokenizer_is_the_same_archive(tmp_path: Path) -> None:
    model = read_served_model(byte_level(tmp_path), "m")
    assert tokenizer_files.tokenizer_archive(model) == tokenizer_files.tokenizer_archive(model)


def test_a_large_archive_comes_in_chunks_of_which_the_last_has_the_hash() -> None:
    archive = bytes(range(256)) * (1 << 13)
    chunks = list(tokenizer_files.to_chunks(archive))
    assert [bool(chunk.sha256) for chunk in chunks] == [False, True]
    assert b"".join(chunk.data for chunk in chunks) == archive
