"""Does a tokenizer built from GGUF metadata encode and decode as the model was trained?"""

from pathlib import Path

import pytest

from scheduler_service.gateway.exceptions import ModelFileError
from scheduler_service.gateway.served_model import ServedModel, read_served_model
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.gguf_file import CONTROL, USER_DEFINED, write_byte_level_gguf, write_sentencepiece_gguf

TEXTS = [
    "",
    " ",
    "hello",
    " hello  world\n\n\tx",
    "In 2024, 3.14159 and 1,000,000",
    "x=12*(y+7)//3  # 100%",
    "Ünïcödé — “quotes” … 中文 日本語 한국어 العربية",
    "😀👨‍👩‍👧‍👦🏳️‍🌈",
    "we're they'LL it's",
    "a\r\nb\r\n",
    "<|im_start|> is no text",
]
SPECIAL = [("<|bos|>", CONTROL), ("<|eos|>", CONTROL), ("<tool>", USER_DEFINED)]


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Each token as text of its own."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]


def byte_level(tmp_path: Path, pre: str, **flags: bool) -> Tokenizer:
    path = write_byte_level_gguf(tmp_path / "m.gguf", pre=pre, special=SPECIAL, **flags)
    return read_served_model(path, "m").tokenizer


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2", "default", "tekken"])
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_gguf_round_trips(tmp_path: Path, pre: str, text: str) -> None:
    tokenizer = byte_level(tmp_path, pre)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["hello", " ", "1", "2", "3"]),
        ("gpt-2", ["hello", " 1", "2", "3"]),
        ("llama-bpe", ["hello", " ", "12", "3"]),
        ("qwen2", ["hello", " ", "1", "2", "3"]),
    ],
)
def test_byte_level_gguf_splits_digits_as_its_pre_tokenizer(tmp_path: Path, pre: str, expected: list[str]) -> None:
    assert tokens(byte_level(tmp_path, pre), "hello 123") == expected


def test_gguf_adds_bos_as_the_file_or_its_kind_says(tmp_path: Path) -> None:
    plain = byte_level(tmp_path, "qwen2").encode("hello", add_special_tokens=True)
    for pre, flags, expected in [
        ("qwen2", {"add_bos_token": True}, ["<|bos|>", "hello"]),
        ("llama-bpe", {}, ["<|bos|>", "hello"]),
        ("llama-bpe", {"add_bos_token": False}, ["hello"]),
        ("qwen2", {"add_eos_token": True}, ["hello", "<|eos|>"]),
    ]:
        tokenizer = byte_level(tmp_path, pre, **flags)
        ids = tokenizer.encode("hello", add_special_tokens=True)
        assert [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids] == expected
        assert tokenizer.encode("hello", add_special_tokens=False) == plain


def test_gguf_marks_control_tokens_as_special_and_user_defined_ones_not(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, "gpt-2")
    assert tokens(tokenizer, "hello<|eos|><tool>hello") == ["hello", "<|eos|>", "<tool>", "hello"]
    ids = tokenizer.encode("hello<|eos|><tool>hello", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello<tool>hello"
    detokenizer = tokenizer.detokenizer(skip_special_tokens=True)
    assert "".join(detokenizer.step(token_id) for token_id in ids) == "hello<tool>hello"
    assert tokenizer.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}


PIECES = [("▁", -1000.0), ("h", -1001.0), ("i", -1002.0), ("▁h", -1.0), ("▁hi", -2.0), ("hi", -3.0), ("ih", -0.5)]


def test_sentencepiece_gguf_merges_by_score(tmp_path: Path) -> None:
    tokenizer = read_served_model(write_sentencepiece_gguf(tmp_path / "m.gguf", PIECES), "m").tokenizer
    backend_tokens = [
        tokenizer._backend.id_to_token(token_id) for token_id in tokenizer.encode("hi hihi", add_special_tokens=True)
    ]
    # In ▁hihi the pair "ih" has the highest score, then "▁h"; so nothing can join them to ▁hi.
    assert backend_tokens == ["<s>", "▁hi", "▁h", "ih", "i"]


@pytest.mark.parametrize(("num_spaces", "runs"), [(13, [13]), (15, [14, 1]), (18, [16, 2]), (31, [16, 14, 1])])
def test_sentencepiece_gguf_joins_the_leftmost_of_equal_pairs(tmp_path: Path, num_spaces: int, runs: list[int]) -> None:
    # Runs of spaces as Mistral 7B's vocabulary has them, all of one score; what SentencePiece gives for them.
    pieces = [("▁" * length, -1e9) for length in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11, 1)]
    tokenizer = read_served_model(write_sentencepiece_gguf(tmp_path / "m.gguf", pieces), "m").tokenizer
    ids = tokenizer.encode(" " * (num_spaces - 1), add_special_tokens=False)
    assert [len(pieces[token_id - 259][0]) for token_id in ids] == runs


@pytest.mark.parametrize("text", [text for text in TEXTS if "<|" not in text])
def test_sentencepiece_gguf_round_trips_with_byte_fallback(tmp_path: Path, text: str) -> None:
    tokenizer = read_served_model(write_sentencepiece_gguf(tmp_path / "m.gguf", PIECES), "m").tokenizer
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_gguf_adds_no_space_where_the_file_says_so(tmp_path: Path) -> None:
    path = write_sentencepiece_gguf(tmp_path / "m.gguf", PIECES, add_space_prefix=False)
    tokenizer = read_served_model(path, "m").tokenizer
    ids = tokenizer.encode("hi", add_special_tokens=False)
    assert ids == [259 + PIECES.index(("hi", -3.0))]
    assert tokenizer.decode(tokenizer.encode(" hi", add_special_tokens=False), skip_special_tokens=True) == " hi"


def test_gguf_refuses_a_pre_tokenizer_that_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="splits text by 'martian'"):
        byte_level(tmp_path, "martian")


def test_gguf_refuses_a_file_without_tokenizer(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"lacks the metadata tokenizer\.ggml\.tokens"):
        read_served_model(path, "m")


# ---- the demo model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> ServedModel:
    return read_served_model(demo_model, "demo")


@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, we can use", [19556, 28, 392, 416, 722]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ],
)
def test_demo_model_encodes_as_trained(demo: ServedModel, text: str, expected: list[int]) -> None:
    assert demo.tokenizer.encode(text, add_special_tokens=True) == expected


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_demo_model_round_trips(demo: ServedModel, text: str) -> None:
    ids = demo.tokenizer.encode(text, add_special_tokens=True)
    assert demo.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.model
def test_demo_model_is_described(demo: ServedModel) -> None:
    assert (demo.architecture, demo.max_model_len, demo.tokenizer.vocab_size) == ("llama", 8192, 49152)
    assert demo.chat_template is not None
    prompt = demo.chat_template.render([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert demo.tokenizer.encode("<|im_end|>", add_special_tokens=False) == [2]
    assert demo.tokenizer.decode([2], skip_special_tokens=True) == ""
