"""Does a stream that is resumed by a count of tokens give exactly the rest, however its tokens come?"""

import asyncio
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.ipc.requests import Ended, EndReason
from scheduler_service.gateway.exceptions import RequestError, SequenceFailedError, StreamChangedError
from scheduler_service.gateway.sent_tokens import NOTHING_SENT
from scheduler_service.gateway.stream import Output, Stream
from tests.fakes.tiny_model import byte_level_ids
from tests.unit.gateway.test_stream import AT_EOS, AT_LENGTH, EOS_ID, PLAIN, feed, stream_of, take

TEXT_IDS = byte_level_ids("hé 中文 STO\U0001f389 STOP and".encode())


def drain(stream: Stream) -> tuple[list[int], str]:
    """What is there, to the end."""
    token_ids, texts = [], []
    while True:
        output = take(stream)
        token_ids += output.token_ids
        texts.append(output.text)
        if output.finish is not None:
            return token_ids, "".join(texts)


def run_in_pieces(stream: Stream, token_ids: list[int], cuts: list[int], ended: Ended) -> list[Output]:
    """Outputs where the reader looks at each cut, if there is news then, and to the end."""

    async def run() -> list[Output]:
        outputs: list[Output] = []
        places = [0, *sorted(cut for cut in cuts if cut < len(token_ids)), len(token_ids)]
        for start, end in itertools.pairwise(places):
            feed(stream, token_ids[start:end], ended if end == len(token_ids) else None)
            if stream._has_news:
                outputs.append(await stream.next())
            if outputs and outputs[-1].finish is not None:
                break
        return outputs

    return asyncio.run(run())


@given(
    num_sent=st.integers(0, len(TEXT_IDS)),
    cuts=st.lists(st.integers(1, len(TEXT_IDS) - 1), max_size=6),
    has_stop=st.booleans(),
)
def test_the_rest_is_what_follows_the_tokens_that_were_sent(num_sent: int, cuts: list[int], has_stop: bool) -> None:
    stop_texts = ("STOP",) if has_stop else ()
    whole = stream_of(stop_texts=stop_texts)
    feed(whole, TEXT_IDS, AT_LENGTH)
    all_ids, all_text = drain(whole)
    num_sent = min(num_sent, len(all_ids))

    # What was sent with the first tokens is what a reader got who looked when just these had come.
    before = stream_of(stop_texts=stop_texts)
    feed(before, all_ids[:num_sent], AT_LENGTH if num_sent == len(TEXT_IDS) else None)
    sent_text = take(before).text if num_sent else ""

    stream = stream_of(stop_texts=stop_texts, sent=NOTHING_SENT.after(all_ids[:num_sent]))
    outputs = run_in_pieces(stream, TEXT_IDS, cuts, AT_LENGTH)
    assert [token_id for output in outputs for token_id in output.token_ids] == all_ids[num_sent:]
    assert sent_text + "".join(output.text for output in outputs) == all_text
    assert outputs[-1].finish is not None
    assert stream.num_output_tokens == len(all_ids)


def test_log_probabilities_of_what_was_sent_are_passed_over() -> None:
    sampling = msgspec.structs.replace(PLAIN.sampling, num_logprobs=0)
    stream = stream_of(sampling=sampling, sent=NOTHING_SENT.after(TEXT_IDS[:2]))
    stream.push_logprobs(bytes(range(8 * 4)))
    feed(stream, TEXT_IDS[:4])
    assert take(stream).logprobs == bytes(range(16, 32))


@pytest.mark.parametrize(
    ("token_ids", "ended"),
    [
        (TEXT_IDS[1:6], AT_LENGTH),
        (TEXT_IDS[:2], AT_LENGTH),
        ([TEXT_IDS[0], EOS_ID], AT_EOS),
    ],
    ids=["others", "fewer", "an early end"],
)
@pytest.mark.parametrize("stop_texts", [(), ("STOP",)])
def test_a_beginning_that_is_another_ends_the_stream(
    token_ids: list[int], ended: Ended, stop_texts: tuple[str, ...]
) -> None:
    stream = stream_of(sent=NOTHING_SENT.after(TEXT_IDS[:4]), stop_texts=stop_texts)
    feed(stream, token_ids, ended)
    with pytest.raises(StreamChangedError):
        take(stream)


def test_a_failure_before_anything_new_is_told() -> None:
    stream = stream_of(sent=NOTHING_SENT.after(TEXT_IDS[:4]))
    feed(stream, TEXT_IDS[:2])
    stream.end(Ended(1, EndReason.FAILED, None, 0, "NaN"))
    with pytest.raises(RequestError) as caught:
        take(stream)
    assert isinstance(caught.value, SequenceFailedError)
