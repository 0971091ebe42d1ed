"""What one step has to tell each gateway, gathered while the scheduler works."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from pagewire.ipc.requests import Ended, EndReason, Started, StepTokens, logprob_record_bytes
from scheduler_service.core.sequence import NOBODY, Sequence


@dataclass(slots=True)
class _News:
    stream_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    logprobs: dict[int, bytes] = field(default_factory=dict)
    prompt_logprobs: dict[int, bytes] = field(default_factory=dict)


class OutputCollector:
    """Collects tokens and ends by gateway until `flush`."""

    def __init__(self) -> None:
        self._news: defaultdict[bytes, _News] = defaultdict(_News)

    def add_accepted(self, gateway: bytes, stream_id: int) -> None:
        """The stream's request was taken."""
        self._news[gateway].accepted.append(stream_id)

    def add_start(self, sequence: Sequence) -> None:
        """The sequence runs for the first time."""
        started = Started(sequence.stream_id, sequence.num_cached_tokens or 0)
        self._news[sequence.gateway].started.append(started)

    def tokens_of(self, gateway: bytes) -> tuple[list[int], list[int]]:
        """Where to append the stream id and the token of each sequence of this gateway that produced one."""
        news = self._news[gateway]
        return news.stream_ids, news.token_ids

    def add_logprobs(self, sequence: Sequence, records: bytes) -> None:
        """The log probabilities of tokens that were added, or will be before `flush`; in the order of the tokens."""
        logprobs = self._news[sequence.gateway].logprobs
        logprobs[sequence.stream_id] = logprobs.get(sequence.stream_id, b"") + records

    def add_drawn_logprobs(self, records: list[tuple[Sequence, bytes]]) -> None:
        """Those of the tokens that a step drew; sequences that are over drew in vain."""
        for sequence, record in records:
            if not sequence.is_over:
                sequence.logprobs += record
                self.add_logprobs(sequence, record)

    def add_prompt_logprobs(self, sequence: Sequence, records: bytes) -> None:
        """The next log probabilities of the prompt's tokens."""
        told = self._news[sequence.gateway].prompt_logprobs
        told[sequence.stream_id] = told.get(sequence.stream_id, b"") + records

    def add_computed_logprobs(self, records: list[tuple[Sequence, bytes]]) -> None:
        """Those of the prompt tokens that a step's tokens predict."""
        for sequence, part in records:
            # Those of sequences that are over are counted, too: further steps may be in flight.
            sequence.prompt_logprobs += part
            if not sequence.is_over:
                self.add_prompt_logprobs(sequence, part)

    def add_end(
        self, sequence: Sequence, reason: EndReason, stop_token_id: int | None = None, detail: str = ""
    ) -> None:
        """The sequence's last word."""
        ended = Ended(sequence.stream_id, reason, stop_token_id, sequence.num_cached_tokens or 0, detail)
        sequence.ended = ended
        self._news[sequence.gateway].ended.append(ended)

    def add_replacement(self, sequence: Sequence) -> None:
        """The sequence is about to go on in another stream: the last word to this one."""
        ended = Ended(sequence.stream_id, EndReason.REPLACED, None, sequence.num_cached_tokens or 0, "")
        self._news[sequence.gateway].ended.append(ended)

    def add_history(self, sequence: Sequence, num_received: int, num_prompt_logprobs: int) -> None:
        """All that a stream must be told which goes on with this sequence; it has received so many of its tokens, and
        records of its prompt's tokens."""
        self.add_accepted(sequence.gateway, sequence.stream_id)
        if sequence.num_cached_tokens is not None:
            self.add_start(sequence)
        if num_prompt_logprobs < sequence.num_known_prompt_logprobs:
            self.add_prompt_logprobs(sequence, sequence.prompt_logprobs_from(num_prompt_logprobs))
        news = self._news[sequence.gateway]
        missing = sequence.token_ids[num_received:].tolist()
        news.stream_ids += [sequence.stream_id] * len(missing)
        news.token_ids += missing
        if missing and sequence.sampling.num_logprobs is not None:
            self.add_logprobs(sequence, sequence.logprobs_from(num_received))
        if sequence.ended is not None:
            news.ended.append(msgspec.structs.replace(sequence.ended, stream_id=sequence.stream_id))

    def flush(self) -> list[tuple[bytes, StepTokens]]:
        """One message per gateway with news; the collector is empty afterwards. News for nobody are dropped."""
        self._news.pop(NOBODY, None)
        if not self._news:
            return []
        messages = [
            (
                gateway,
                StepTokens(
                    stream_ids=np.array(news.stream_ids, dtype="<u4").tobytes(),
                    token_ids=np.array(news.token_ids, dtype="<i4").tobytes(),
                    ended=news.ended,
                    accepted=np.array(news.accepted, dtype="<u4").tobytes(),
                    started=news.started,
                    logprobs=news.logprobs,
                    prompt_logprobs=news.prompt_logprobs,
                ),
            )
            for gateway, news in self._news.items()
        ]
        self._news.clear()
        return messages


def split_logprobs(sequences: list[Sequence], records: bytes) -> Iterator[tuple[Sequence, bytes]]:
    """Each of the sequences that want log probabilities with its record.

    Raises:
        ValueError: there are more or fewer records.
    """
    end = 0
    for sequence in sequences:
        if sequence.sampling.num_logprobs is not None:
            start, end = end, end + logprob_record_bytes(sequence.sampling.num_logprobs)
            yield sequence, records[start:end]
    if end != len(records):
        raise ValueError(f"log probabilities of {len(records)} bytes, not of {end}")


def split_prompt_logprobs(
    sequences: Iterable[tuple[Sequence, int]], records: bytes
) -> Iterator[tuple[Sequence, bytes]]:
    """Each of the sequences of which prompt tokens have news with their records.

    Args:
        sequences: those of a step, each with how many of its tokens are computed after it.
    Raises:
        ValueError: there are more or fewer records.
    """
    end = 0
    for sequence, num_computed in sequences:
        if count := sequence.num_new_prompt_logprobs(num_computed):
            start, end = end, end + count * logprob_record_bytes(sequence.sampling.num_prompt_logprobs or 0)
            yield sequence, records[start:end]
    if end != len(records):
        raise ValueError(f"log probabilities of prompts of {len(records)} bytes, not of {end}")
