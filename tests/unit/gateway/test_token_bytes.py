"""Are the bytes of single tokens those that they add to a text?"""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.gateway.openai.logprobs import count_chars, token_text
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.tiny_model import EOS, byte_level_tokenizer, sentencepiece_tokenizer

BYTE_LEVEL = Tokenizer(byte_level_tokenizer(), {})
SENTENCEPIECE = Tokenizer(sentencepiece_tokenizer(), {})
EOS_ID = byte_level_tokenizer().get_vocab()[EOS]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_of_all_tokens_are_those_of_the_text(text: str) -> None:
    token_ids = BYTE_LEVEL.encode(text, add_special_tokens=False)
    assert b"".join(map(BYTE_LEVEL.bytes_of, token_ids)) == text.encode()
    assert sum(count_chars(token_ids, BYTE_LEVEL, skips_special=True)) == len(text)


@pytest.mark.parametrize("text", ["a b", " a", "中 é", "\U0001f389"])
def test_spaces_and_bytes_of_sentencepiece(text: str) -> None:
    backend: tokenizers.Tokenizer = sentencepiece_tokenizer()
    token_ids = backend.encode(text.replace(" ", "▁"), add_special_tokens=False).ids
    assert b"".join(map(SENTENCEPIECE.bytes_of, token_ids)) == text.encode()


def test_a_part_of_a_character_is_written_as_its_bytes() -> None:
    first, second = BYTE_LEVEL.encode("é", add_special_tokens=False)
    assert (token_text(first, BYTE_LEVEL), token_text(second, BYTE_LEVEL)) == ("bytes:\\xc3", "bytes:\\xa9")


def test_special_tokens_have_a_text_but_no_place_in_the_output() -> None:
    assert BYTE_LEVEL.is_special(EOS_ID)
    assert token_text(EOS_ID, BYTE_LEVEL) == EOS
    assert count_chars([EOS_ID], BYTE_LEVEL, skips_special=True) == [0]
    assert count_chars([EOS_ID], BYTE_LEVEL, skips_special=False) == [len(EOS)]


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert BYTE_LEVEL.bytes_of(100_000) == b""
