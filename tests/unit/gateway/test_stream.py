"""Does a stream give every token once, with its text, and end as it should, however tokens pool?"""

import asyncio
import struct
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.ipc.requests import Ended, EndReason, Sampling, logprob_record_bytes
from scheduler_service.gateway.exceptions import (
    DeadlinePassedError,
    EngineUnavailableError,
    RequestError,
    SequenceFailedError,
)
from scheduler_service.gateway.generation import int32_array
from scheduler_service.gateway.logprobs import to_protos
from scheduler_service.gateway.stream import Finish, Output, Stream
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.tiny_model import EOS, byte_level_ids, byte_level_tokenizer
from tests.fakes.watched_pool import GENERATION

TOKENIZER = Tokenizer(byte_level_tokenizer(), {})
EOS_ID = byte_level_tokenizer().get_vocab()[EOS]
PLAIN = replace(GENERATION, prompt_ids=int32_array([1, 2]), max_tokens=100, end_token_ids=frozenset({EOS_ID}))
AT_LENGTH = Ended(1, EndReason.LENGTH, None, 5, "")
AT_EOS = Ended(1, EndReason.STOP, EOS_ID, 5, "")


def stream_of(**changes: object) -> Stream:
    return Stream(replace(PLAIN, **changes), TOKENIZER)  # type: ignore[arg-type]


def feed(stream: Stream, token_ids: Iterable[int], ended: Ended | None = None) -> None:
    """One message of the scheduler after another; the end comes with the last token. Stops where the gateway would."""
    ids = list(token_ids)
    for position, token_id in enumerate(ids, start=1):
        stream.push(token_id)
        if ended is not None and position == len(ids):
            stream.end(ended)
        stream.look_for_stop()
        if stream.is_finished:
            return


def take(stream: Stream) -> Output:
    """What is there already."""
    waiting = stream.next()
    with pytest.raises(StopIteration) as returned:
        waiting.send(None)
    output = returned.value.value
    assert isinstance(output, Output)
    return output


def test_stream_gives_pooled_tokens_at_once() -> None:
    stream = stream_of()
    feed(stream, byte_level_ids(b"abc"))
    output = take(stream)
    assert (list(output.token_ids), output.text, output.finish) == (byte_level_ids(b"abc"), "abc", None)
    feed(stream, byte_level_ids(b"d"), AT_LENGTH)
    output = take(stream)
    assert (list(output.token_ids), output.text) == (byte_level_ids(b"d"), "d")
    assert output.finish == Finish(num_cached_tokens=5)
    assert stream.num_output_tokens == 4


def test_stream_wakes_its_waiting_reader() -> None:
    async def read() -> Output:
        stream = stream_of()
        reader = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        assert not reader.done()
        stream.push(byte_level_ids(b"x")[0])
        stream.wake()
        return await reader

    assert asyncio.run(read()).text == "x"


def test_stream_gives_each_token_its_logprobs() -> None:
    ids = byte_level_ids(b"abcd")
    stream = stream_of(sampling=replace_sampling(num_logprobs=1), received_ids=int32_array(ids[:1]))
    records = [record(rank, ids[rank]) for rank in range(1, 4)]
    for token_id, wanted in zip(ids[1:], records, strict=True):
        stream.push(token_id)
        stream.push_logprobs(wanted)
        if token_id == ids[1]:
            assert take(stream).logprobs == wanted
    assert take(stream).logprobs == b"".join(records[1:])
    messages = list(to_protos(ids[2:], b"".join(records[1:]), 1))
    assert [(m.token_id, m.rank, m.logprob, m.top[0].token_id, len(m.top)) for m in messages] == [
        (ids[2], 2, -2.0, ids[2], 1),
        (ids[3], 3, -3.0, ids[3], 1),
    ]


def test_stream_gives_no_logprobs_of_tokens_after_a_stop_text() -> None:
    stream = stream_of(sampling=replace_sampling(num_logprobs=1), stop_texts=("b",))
    for rank, token_id in enumerate(byte_level_ids(b"abc"), start=1):
        stream.push(token_id)
        stream.push_logprobs(record(rank, token_id))
    stream.look_for_stop()
    assert len(take(stream).logprobs) == 2 * logprob_record_bytes(1)


def record(rank: int, token_id: int) -> bytes:
    return struct.pack("<ifif", rank, -float(rank), token_id, -0.5)


def replace_sampling(**changes: object) -> Sampling:
    return msgspec.structs.replace(PLAIN.sampling, **changes)


def test_stream_holds_half_a_character_but_not_its_token() -> None:
    stream = stream_of()
    first, second = byte_level_ids("é".encode())
    feed(stream, [first])
    output = take(stream)
    assert (list(output.token_ids), output.text) == ([first], "")
    feed(stream, [second])
    assert take(stream).text == "é"


def test_stream_flushes_half_a_character_at_the_end() -> None:
    stream = stream_of()
    feed(stream, byte_level_ids("é".encode())[:1], AT_LENGTH)
    assert take(stream).text == "\ufffd"


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("stop_texts", [(), ("zzz",)])
def test_stream_gives_the_stop_token_without_text(skip_special_tokens: bool, stop_texts: tuple[str, ...]) -> None:
    stream = stream_of(skip_special_tokens=skip_special_tokens, stop_texts=stop_texts)
    feed(stream, [*byte_level_ids(b"ab"), EOS_ID], AT_EOS)
    output = take(stream)
    assert (list(output.token_ids), output.text) == ([*byte_level_ids(b"ab"), EOS_ID], "ab")
    assert output.finish == Finish(stop_token_id=EOS_ID, num_cached_tokens=5)


def test_stream_shows_special_tokens_in_the_middle_where_asked_to() -> None:
    stream = stream_of(skip_special_tokens=False)
    feed(stream, [EOS_ID, *byte_level_ids(b"a")])
    assert take(stream).text == EOS + "a"


def test_stream_without_text_sends_ids_alone() -> None:
    stream = stream_of(sends_text=False)
    feed(stream, byte_level_ids(b"abc"), AT_LENGTH)
    output = take(stream)
    assert (len(output.token_ids), output.text) == (3, "")


def test_final_only_stream_has_no_news_before_its_end() -> None:
    async def run() -> None:
        stream = stream_of(is_final_only=True)
        reader = asyncio.create_task(stream.next())
        for token_id in byte_level_ids(b"ab"):
            feed(stream, [token_id])
            stream.wake()
            await asyncio.sleep(0)
            assert not reader.done()
        feed(stream, byte_level_ids(b"c"), AT_LENGTH)
        stream.wake()
        output = await reader
        assert (list(output.token_ids), output.text) == (byte_level_ids(b"abc"), "abc")
        assert output.finish == Finish(num_cached_tokens=5)

    asyncio.run(run())


def test_final_only_stream_gives_what_there_is_before_its_failure() -> None:
    stream = stream_of(is_final_only=True)
    feed(stream, byte_level_ids(b"ab"))
    stream.fail(EngineUnavailableError("gone"))
    assert take(stream).text == "ab"
    with pytest.raises(EngineUnavailableError):
        stream.next().send(None)


def test_stream_ends_at_a_stop_text_though_nobody_reads() -> None:
    stream = stream_of(stop_texts=("cd",))
    feed(stream, byte_level_ids(b"abcdef"))
    assert stream.is_finished
    output = take(stream)
    assert (list(output.token_ids), output.text) == (byte_level_ids(b"abcd"), "ab")
    assert output.finish == Finish(stop_text="cd")
    assert stream.num_output_tokens == 4


def test_stream_drops_tokens_after_the_stop_text_of_the_same_message() -> None:
    stream = stream_of(stop_texts=("cd",), include_stop=True)
    for token_id in byte_level_ids(b"abcdef"):
        stream.push(token_id)
    stream.end(AT_LENGTH)
    stream.look_for_stop()
    output = take(stream)
    assert (list(output.token_ids), output.text) == (byte_level_ids(b"abcd"), "abcd")
    assert output.finish == Finish(stop_text="cd", num_cached_tokens=5)


def test_stream_finds_a_stop_text_in_what_is_flushed() -> None:
    stream = stream_of(stop_texts=("x\ufffd",))
    feed(stream, byte_level_ids(b"x\xc3"), AT_LENGTH)
    output = take(stream)
    assert (output.text, output.finish) == ("", Finish(stop_text="x\ufffd", num_cached_tokens=5))


def test_stream_gives_held_text_at_the_end() -> None:
    stream = stream_of(stop_texts=("abc",))
    feed(stream, byte_level_ids(b"xab"), AT_LENGTH)
    assert take(stream).text == "xab"


@pytest.mark.parametrize(("min_tokens", "text"), [(1, ""), (2, "a.b"), (3, "a.b")])
def test_stream_ignores_stop_texts_before_the_minimum(min_tokens: int, text: str) -> None:
    stream = stream_of(stop_texts=(".",), min_tokens=min_tokens)
    feed(stream, byte_level_ids(b"a.b.c"))
    output = take(stream)
    assert output.text == (text or "a")
    assert output.finish == Finish(stop_text=".")


@pytest.mark.parametrize(
    ("ended", "error"),
    [
        (Ended(1, EndReason.DEADLINE, None, 0, ""), DeadlinePassedError),
        (Ended(1, EndReason.FAILED, None, 0, "logits are NaN"), SequenceFailedError),
    ],
)
def test_stream_gives_its_tokens_before_its_error(ended: Ended, error: type[RequestError]) -> None:
    stream = stream_of()
    feed(stream, byte_level_ids(b"ab"), ended)
    output = take(stream)
    assert (output.text, output.finish) == ("ab", None)
    for _ in range(2):
        with pytest.raises(error, match=ended.detail or "deadline"):
            take(stream)


def test_stream_gives_its_tokens_before_it_is_lost() -> None:
    stream = stream_of()
    feed(stream, byte_level_ids(b"ab"))
    stream.fail(EngineUnavailableError("gone"))
    assert take(stream).text == "ab"
    with pytest.raises(EngineUnavailableError):
        take(stream)


def test_stream_bounds_what_one_message_holds() -> None:
    stream = stream_of()
    feed(stream, byte_level_ids(b"x") * 10_000, AT_LENGTH)
    outputs = [take(stream)]
    while outputs[-1].finish is None:
        outputs.append(take(stream))
    assert max(len(output.token_ids) for output in outputs) == 4096
    assert "".join(output.text for output in outputs) == "x" * 10_000


@given(st.binary(min_size=1, max_size=40), st.lists(st.booleans(), min_size=40, max_size=40), st.integers(0, 40))
def test_stream_continues_exactly_when_resumed(data: bytes, reads: list[bool], num_received: int) -> None:
    """Whatever was read before the cut and whatever pooled, both parts give the text of an undisturbed stream."""
    token_ids = byte_level_ids(data)
    stops = ("ab", "\ufffd\ufffd\ufffd")
    undisturbed = stream_of(stop_texts=stops, max_tokens=len(token_ids))
    feed(undisturbed, token_ids, AT_LENGTH)
    whole = take(undisturbed)

    first = stream_of(stop_texts=stops, max_tokens=len(token_ids))
    text, received = "", int32_array()
    for position, is_read in zip(range(num_received), reads, strict=False):
        if first.is_finished:
            break
        feed(first, token_ids[position : position + 1], AT_LENGTH if position == len(token_ids) - 1 else None)
        if is_read:
            output = take(first)
            text += output.text
            received += output.token_ids
    resumed = stream_of(stop_texts=stops, max_tokens=len(token_ids), received_ids=received)
    if not resumed.is_finished:
        feed(resumed, token_ids[len(received) :], AT_LENGTH)
        output = take(resumed)
        text += output.text
        received += output.token_ids
    assert (text, list(received)) == (whole.text, list(whole.token_ids))
    assert resumed.num_output_tokens == len(whole.token_ids)


@pytest.mark.parametrize(
    ("received", "changes", "finish"),
    [
        ([*byte_level_ids(b"ab"), EOS_ID], {}, Finish(stop_token_id=EOS_ID)),
        (byte_level_ids(b"ab"), {"max_tokens": 2}, Finish()),
        (byte_level_ids(b"ab"), {"stop_texts": ("b",)}, Finish(stop_text="b")),
    ],
)
def test_stream_resumed_at_its_end_just_finishes(
    received: list[int], changes: dict[str, object], finish: Finish
) -> None:
    stream = stream_of(received_ids=int32_array(received), **changes)
    assert stream.is_finished
    output = take(stream)
    assert (list(output.token_ids), output.text, output.finish) == ([], "", finish)
    assert stream.num_output_tokens == len(received)


def test_stream_resumed_before_the_minimum_goes_on_after_an_end_token() -> None:
    assert not stream_of(received_ids=int32_array([EOS_ID]), min_tokens=1).is_finished


def test_stream_gives_what_it_has_of_the_prompt_before_all_tokens() -> None:
    sampling = msgspec.structs.replace(PLAIN.sampling, num_prompt_logprobs=1)
    prompt_ids, size = int32_array(range(10_000)), logprob_record_bytes(1)
    records = b"".join(struct.pack("<ifif", 1, -0.5, token_id, -0.5) for token_id in prompt_ids[1:])
    stream = stream_of(sampling=sampling, prompt_ids=prompt_ids, num_received_prompt_logprobs=10)
    assert stream.to_submit().num_known_prompt_logprobs == 10
    stream.push_prompt_logprobs(records[10 * size : 100 * size])
    assert stream.to_submit().num_known_prompt_logprobs == 100
    parts = [take(stream)]
    stream.push_prompt_logprobs(records[100 * size :])
    feed(stream, byte_level_ids(b"ab"), AT_LENGTH)
    while not (output := take(stream)).token_ids:
        assert output.finish is None
        parts.append(output)
    assert [len(part.prompt_ids) for part in parts] == [90, 4096, 4096, 9999 - 100 - 2 * 4096]
    assert [token_id for part in parts for token_id in part.prompt_ids] == list(range(11, 10_000))
    assert b"".join(part.prompt_logprobs for part in parts) == records[10 * size :]
    assert (output.text, output.finish) == ("ab", Finish(num_cached_tokens=5))
    assert stream.to_submit().num_known_prompt_logprobs == 9999
