"""Does incremental detokenization give the tokenizer's own decoding, in pieces without half characters?"""

from collections.abc import Collection, Sequence

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler_service.gateway.detokenizer import Detokenizer
from tests.fakes.tiny_model import byte_level_ids, byte_level_tokenizer, sentencepiece_tokenizer

BYTE_LEVEL = byte_level_tokenizer()
NUM_IDS = BYTE_LEVEL.get_vocab_size()
UNKNOWN_ID = 100_000

SENTENCEPIECE = sentencepiece_tokenizer()
PIECES = SENTENCEPIECE.get_vocab()

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=60)
# Parts of characters, so that complete, cut and impossible ones all occur.
parts = st.sampled_from([0x41, 0x20, 0x80, 0xBF, 0xC3, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0xED, 0xA0, 0xFF])
rubbish = st.lists(parts, max_size=200).map(bytes)


def pieces_of(backend: tokenizers.Tokenizer, token_ids: Sequence[int], skipped: Collection[int] = ()) -> list[str]:
    """Text of each step, and of the flush."""
    detokenizer = Detokenizer(backend, skipped)
    return [*(detokenizer.step(token_id) for token_id in token_ids), detokenizer.flush()]


@given(texts)
def test_detokenizer_gives_text_back(text: str) -> None:
    assert "".join(pieces_of(BYTE_LEVEL, BYTE_LEVEL.encode(text).ids)) == text


@given(texts)
def test_detokenizer_never_emits_half_a_character(text: str) -> None:
    pieces = pieces_of(BYTE_LEVEL, byte_level_ids(text.encode()))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(texts.filter(bool))
def test_detokenizer_emits_each_character_with_its_last_byte(text: str) -> None:
    data = text.encode()
    detokenizer = Detokenizer(BYTE_LEVEL, frozenset())
    emitted = ""
    for end, token_id in enumerate(byte_level_ids(data), start=1):
        emitted += detokenizer.step(token_id)
        assert emitted == data[:end].decode(errors="ignore")


@given(st.lists(st.integers(0, NUM_IDS - 1) | st.just(UNKNOWN_ID), max_size=200))
@example([UNKNOWN_ID] * 200 + byte_level_ids(b"x"))
def test_detokenizer_equals_decode_for_any_ids(token_ids: list[int]) -> None:
    assert "".join(pieces_of(BYTE_LEVEL, token_ids)) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=False)


@given(rubbish)
@example(b"\xe4\xb8" * 60 + "中".encode() * 3 + b"\xe4")
@example(b"\xff" * 40 + b"\xf0\x9f\x98")
@example(b"a" + b"\xf0\x9f" * 31 + b"\xf0\x9f\x98\x80b")
def test_detokenizer_equals_decode_for_rubbish(data: bytes) -> None:
    token_ids = byte_level_ids(data)
    assert "".join(pieces_of(BYTE_LEVEL, token_ids)) == data.decode(errors="replace")


@given(st.lists(parts, min_size=40, max_size=200).map(bytes))
def test_detokenizer_holds_little_back_in_rubbish(data: bytes) -> None:
    pieces = pieces_of(BYTE_LEVEL, byte_level_ids(data))
    assert len(pieces[-1]) <= 32


def test_detokenizer_gives_rubbish_out_as_it_goes_on() -> None:
    pieces = pieces_of(BYTE_LEVEL, byte_level_ids(b"\xff" * 500))
    assert all(piece == "\ufffd" for piece in pieces[40:])


def test_detokenizer_keeps_nothing_of_ids_without_text() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, frozenset())
    assert not any(detokenizer.step(UNKNOWN_ID) for _ in range(1_000))
    assert len(detokenizer._context) + len(detokenizer._pending) < 40


@given(st.lists(st.integers(0, NUM_IDS - 1), max_size=60))
def test_detokenizer_skips_special_tokens(token_ids: list[int]) -> None:
    specials = frozenset(range(NUM_IDS - 4, NUM_IDS))
    assert "".join(pieces_of(BYTE_LEVEL, token_ids, specials)) == BYTE_LEVEL.decode(token_ids)


# Pieces whose bytes, if any, form characters: for others byte fallback changes what it gave before.
whole_pieces = st.lists(
    st.sampled_from(["▁", "a", "b", "▁a", "▁b", "é", "▁中", "ü", "😀", "\n"]).map(
        lambda text: (
            [SENTENCEPIECE.token_to_id(text)]
            if SENTENCEPIECE.token_to_id(text) is not None
            else [1 + byte for byte in text.encode()]
        )
    ),
    max_size=40,
)


@given(whole_pieces)
def test_detokenizer_equals_decode_with_byte_fallback(pieces: list[list[int]]) -> None:
    token_ids = [token_id for piece in pieces for token_id in piece]
    assert "".join(pieces_of(SENTENCEPIECE, token_ids)) == SENTENCEPIECE.decode(token_ids)


@given(st.lists(st.integers(0, SENTENCEPIECE.get_vocab_size() - 1), max_size=120))
def test_detokenizer_survives_any_byte_fallback(token_ids: list[int]) -> None:
    after = [PIECES["▁b"], PIECES["▁a"]]
    assert "".join(pieces_of(SENTENCEPIECE, [*token_ids, *after])).endswith("b a")


def test_detokenizer_flushes_a_cut_character_after_a_leading_space() -> None:
    token_ids = [PIECES["a"], PIECES["▁b"], 1 + 0xF0, 1 + 0x9F]
    assert "".join(pieces_of(SENTENCEPIECE, token_ids)) == SENTENCEPIECE.decode(token_ids)


def test_detokenizer_holds_no_real_replacement_character_for_good() -> None:
    assert "".join(pieces_of(SENTENCEPIECE, [PIECES["�"]] * 3)) == "���"


def test_detokenizer_refuses_what_is_no_id() -> None:
    with pytest.raises(TypeError):
        Detokenizer(BYTE_LEVEL, frozenset()).step(-1)
