"""Are GGUF key-value pairs read as they were written, and damaged files refused with a clear error?"""

import tempfile
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.gateway.exceptions import ModelFileError
from scheduler_service.gateway.tokenizer.gguf_metadata import read_gguf_metadata


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -5)
    writer.add_uint16("a.uint16", 60_000)
    writer.add_int16("a.int16", -30_000)
    writer.add_uint32("a.uint32", 4_000_000_000)
    writer.add_int32("a.int32", -2_000_000_000)
    writer.add_uint64("a.uint64", 2**63)
    writer.add_int64("a.int64", -(2**62))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 1e-300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "grüße 😀")
    writer.add_array("a.strings", ["x", "", "▁中"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_gguf_metadata_reads_every_type(gguf_path: Path) -> None:
    assert read_gguf_metadata(gguf_path) == {
        "general.architecture": "llama",
        "a.uint8": 200,
        "a.int8": -5,
        "a.uint16": 60_000,
        "a.int16": -30_000,
        "a.uint32": 4_000_000_000,
        "a.int32": -2_000_000_000,
        "a.uint64": 2**63,
        "a.int64": -(2**62),
        "a.float32": 0.5,
        "a.float64": 1e-300,
        "a.bool": True,
        "a.string": "grüße 😀",
        "a.strings": ["x", "", "▁中"],
        "a.numbers": [1, -2, 3],
        "a.floats": [0.25, -1.5],
    }


def test_gguf_metadata_refuses_every_truncation(gguf_path: Path, tmp_path: Path) -> None:
    data = gguf_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=r"cut\.gguf is not a complete GGUF file .*: download it again"):
            read_gguf_metadata(path)


@given(st.binary(max_size=200))
def test_gguf_metadata_refuses_rubbish_lengths(tail: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (50).to_bytes(8, "little") + tail)
        file.flush()
        with pytest.raises(ModelFileError):
            read_gguf_metadata(Path(file.name))


@pytest.mark.parametrize(("content", "problem"), [(b"PK\x03\x04" * 9, "begin with GGUF"), (b"", "empty")])
def test_gguf_metadata_refuses_another_format(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=problem):
        read_gguf_metadata(path)


def test_gguf_metadata_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cannot read the model file .*: No such file"):
        read_gguf_metadata(tmp_path / "absent.gguf")
