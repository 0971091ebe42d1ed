"""What has arrived for one open stream and was not sent yet?

Tokens pool here while the caller's reader is slow; each `next` takes all that are there. Tokens wait as int32 and
become text only when they are taken, so a caller who never reads costs four bytes a token. A stream with stop texts
decodes at once instead: the engine must learn of the stop though nobody reads. Tokens that were taken stay until the
stream ends: with them its request can be submitted to another scheduler.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pagewire.ipc.requests import Ended, EndReason, Submit, logprob_record_bytes
from scheduler_service.gateway.exceptions import (
    DeadlinePassedError,
    SequenceFailedError,
    StreamChangedError,
    StreamReplacedError,
)
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.output_text import OutputText
from scheduler_service.gateway.prompt_logprobs import PromptLogprobs
from scheduler_service.gateway.sent_tokens import NOTHING_SENT, SentTokens
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

# Bounds the work between two looks at other streams, and the size of one message.
_MAX_TOKENS_PER_OUTPUT = 4096
# A str object costs 50 bytes whatever its length: pieces that nobody takes are joined at this number.
_MAX_TEXT_PIECES = 256


@dataclass(frozen=True, slots=True)
class Finish:
    """How a stream ended: by a stop text, by a stop token, or, without either, because its length was reached."""

    stop_text: str | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class Output:
    """News of a stream: tokens, their text, the records of their log probabilities if they are wanted, and in the last
    one how the stream ended. Or, before those, prompt tokens with their records."""

    token_ids: "array[int]"
    text: str
    logprobs: bytes
    finish: Finish | None
    prompt_ids: "array[int]" = field(default_factory=int32_array)
    prompt_logprobs: bytes = b""


class Stream:
    """One request whose events have not all been sent.

    token_ids:  | given out ... | decoded ........ | arrived .... |
                0          num_given   num_output_tokens     len(token_ids)

    Args:
        generation: the request. Tokens that its caller has already are not given out again; what follows them is.
        tokenizer: turns tokens into text.
    Attributes:
        stream_id: names the stream between this gateway and the scheduler that runs it now; 0: none has.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer) -> None:
        self.stream_id = 0
        self.generation = generation
        self.num_output_tokens = 0
        needs_text = generation.sends_text or bool(generation.stop_texts)
        self._text = OutputText(generation, tokenizer) if needs_text else None
        self._token_ids = int32_array(generation.received_ids)
        self._num_given = len(generation.received_ids)
        self._logprobs = bytearray()
        num_logprobs = generation.sampling.num_logprobs
        self._record_bytes = 0 if num_logprobs is None else logprob_record_bytes(num_logprobs)
        self._prompt_logprobs = PromptLogprobs(generation)
        self._num_cached_tokens: int | None = None
        self._has_started = False
        self._num_submitted = 0
        self._num_deaths = 0
        self._decoded_text: list[str] = []
        self._ended: Ended | None = None
        self._finish: Finish | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._acceptance: asyncio.Future[None] | None = None
        self._is_accepted = False
        self._replay()

    # ---- what the scheduler says ----------------------------------------------------------------------------------

    def accept(self) -> None:
        """The scheduler has taken the request."""
        self._is_accepted = True

    def start(self, num_cached_tokens: int) -> None:
        """The sequence runs. What a later run finds in the prefix cache is no news for the caller."""
        self._has_started = True
        if self._num_cached_tokens is None:
            self._num_cached_tokens = num_cached_tokens

    def push(self, token_id: int) -> None:
        """The next token arrived."""
        self._token_ids.append(token_id)

    def push_logprobs(self, records: bytes) -> None:
        """The log probabilities of tokens that arrived; see pagewire.ipc.requests."""
        self._logprobs += records

    def push_prompt_logprobs(self, records: bytes) -> None:
        """The log probabilities of further prompt tokens arrived."""
        self._prompt_logprobs.push(records)

    def end(self, ended: Ended) -> None:
        """No token follows those that arrived."""
        self._ended = ended

    def fail(self, error: Exception) -> None:
        """The stream ends with an error once what has arrived is taken."""
        self._error = error

    def look_for_stop(self) -> None:
        """Find the stop text that the tokens which arrived may complete; `is_finished` tells whether they do."""
        if self._text is not None and self._text.looks_for_stops:
            self._decode(len(self._token_ids))

    def wake(self) -> None:
        """Let the reader have the news, if there is any for it."""
        if self._waiter is not None and not self._waiter.done() and self._has_news:
            self._waiter.set_result(None)
        if self._acceptance is not None and not self._acceptance.done() and self._is_known:
            self._acceptance.set_result(None)

    @property
    def is_finished(self) -> bool:
        """Whether it is known how the stream ends (the scheduler may not know it yet)."""
        return self._finish is not None or self._ended is not None or self._error is not None

    @property
    def is_complete(self) -> bool:
        """Whether it is over because all that its caller asked for has arrived."""
        return self._finish is not None

    @property
    def is_accepted(self) -> bool:
        """Whether some scheduler has taken the request, so that its caller may count on it."""
        return self._is_accepted

    @property
    def sequence_ids(self) -> "array[int]":
        """The prompt, and all output that has arrived."""
        return self.generation.prompt_ids + self._token_ids

    @property
    def num_tokens(self) -> int:
        """Of these."""
        return len(self.generation.prompt_ids) + len(self._token_ids)

    @property
    def has_got_further(self) -> bool:
        """Whether output has arrived since it was last submitted."""
        return len(self._token_ids) > self._num_submitted

    @property
    def is_running(self) -> bool:
        """Whether the scheduler that has it has begun with it."""
        return self._has_started or self.has_got_further

    def note_death(self) -> None:
        """A worker died, maybe of this request, if it was running it."""
        if self.has_got_further:
            self._num_deaths = 0
        self._num_deaths += self.is_running

    @property
    def deadline_s(self) -> float | None:
        """When the caller wants no more, in Unix time."""
        return self.generation.deadline_s

    def to_submit(self) -> Submit:
        """The message that makes a scheduler run what is left of this request."""
        resumes = self.generation.is_resumed and not self._is_accepted
        self._has_started, self._num_submitted = False, len(self._token_ids)
        return self.generation.to_submit(
            self.stream_id,
            self._token_ids,
            resumes=resumes,
            was_accepted=self._is_accepted,
            num_prompt_logprobs=self._prompt_logprobs.num_known,
            num_deaths=self._num_deaths,
        )

    # ---- what the caller gets -------------------------------------------------------------------------------------

    async def accepted(self) -> None:
        """Wait until the request is accepted.

        Raises:
            RequestError: it was not.
        """
        if not self._is_known:
            self._acceptance = asyncio.get_running_loop().create_future()
            await self._acceptance
            self._acceptance = None
        if self._error is not None and not self._is_accepted:
            raise self._error

    @property
    def _is_known(self) -> bool:
        """Whether there is an answer to the request."""
        return self._is_accepted or self.is_finished

    async def next(self, turn: Callable[[], Awaitable[None]] | None = None) -> Output:
        """Wait for news and take all of it. To a caller who wants output at the end alone, only the end is news.

        Args:
            turn: waited for once there is news.
        Raises:
            RequestError: the stream ended without its completion.
        """
        if not self._has_news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if turn is not None:
            await turn()
        return self._take()

    @property
    def _has_news(self) -> bool:
        num_sent = max(self._num_given, self.generation.sent.num_tokens)
        has_output = len(self._token_ids) > num_sent or bool(self._prompt_logprobs)
        return (has_output and not self.generation.is_final_only) or self.is_finished

    def _take(self) -> Output:
        if self._prompt_logprobs:
            return Output(int32_array(), "", b"", None, *self._prompt_logprobs.take())
        if self._finish is None:
            self._decode(_MAX_TOKENS_PER_OUTPUT)
        token_ids = self._token_ids[self._num_given : self.num_output_tokens]
        if self._error is not None and not token_ids:
            raise self._error
        logprobs = self._take_logprobs(len(token_ids)) if self._record_bytes else b""
        output = Output(token_ids, "".join(self._decoded_text), logprobs, self._finish)
        self._num_given = self.num_output_tokens
        self._decoded_text = []
        return output

    def _take_logprobs(self, num_tokens: int) -> bytes:
        """The records of the next tokens to give out: the first that are here."""
        end = num_tokens * self._record_bytes
        taken = bytes(self._logprobs[:end])
        del self._logprobs[:end]
        return taken

    # ---- tokens become text ---------------------------------------------------------------------------------------

    def _decode(self, max_tokens: int) -> None:
        """Decode tokens that arrived, except that those which the caller has are passed over."""
        if self.num_output_tokens < self.generation.sent.num_tokens:
            self._pass_over(self.generation.sent)
        if self._finish is None:
            self._decode_next(max_tokens)

    def _pass_over(self, sent: SentTokens) -> None:
        """Decode what has arrived of the tokens that the caller has, and give nothing of it out."""
        self._decode_next(sent.num_tokens - self.num_output_tokens)
        self._take_logprobs(self.num_output_tokens - self._num_given)
        self._num_given = self.num_output_tokens
        self._decoded_text = []
        is_whole = self.num_output_tokens == sent.num_tokens
        if (is_whole or self._finish is not None) and NOTHING_SENT.after(self._token_ids[: sent.num_tokens]) != sent:
            del self._token_ids[self._num_given :]
            self._error = StreamChangedError()

    def _decode_next(self, max_tokens: int) -> None:
        """Move tokens from arrived to decoded; with the last one, find out how the stream ended."""
        token_ids = self._token_ids[self.num_output_tokens : self.num_output_tokens + max_tokens]
        is_last = self.num_output_tokens + len(token_ids) == len(self._token_ids)
        ended = self._ended if is_last else None
        if self._text is None:
            self.num_output_tokens += len(token_ids)
        else:
            self._decode_text(self._text, token_ids, silent_last=ended.stop_token_id if ended else None)
        if ended is not None and self._finish is None:
            self._conclude(ended)

    def _decode_text(self, text: OutputText, token_ids: "array[int]", silent_last: int | None) -> None:
        num_tokens = len(token_ids)
        # The token that ended the stream is no part of its text, whether special tokens are shown or not.
        num_with_text = num_tokens - 1 if num_tokens and token_ids[-1] == silent_last else num_tokens
        pieces = []
        for position, token_id in enumerate(token_ids[:num_with_text], start=1):
            pieces.append(text.add(token_id))
            if text.found is not None:
                self._finish = self._finish_at_stop_text(text.found)
                num_tokens = position
                del self._token_ids[self.num_output_tokens + num_tokens :]
                break
        self.num_output_tokens += num_tokens
        self._decoded_text.append("".join(pieces))
        if len(self._decoded_text) >= _MAX_TEXT_PIECES:
            self._decoded_text = ["".join(self._decoded_text)]

    def _conclude(self, ended: Ended) -> None:
        if ended.reason is EndReason.DEADLINE:
            self._error = DeadlinePassedError()
            return
        if ended.reason is EndReason.FAILED:
            self._error = SequenceFailedError(ended.detail)
            return
        if ended.reason is EndReason.REPLACED:
            self._error = StreamReplacedError()
            return
        if self._text is not None:
            self._decoded_text.append(self._text.finish())
            if self._text.found is not None:
                self._finish = self._finish_at_stop_text(self._text.found)
                return
        self._finish = Finish(stop_token_id=ended.stop_token_id, num_cached_tokens=self._cached_tokens())

    def _finish_at_stop_text(self, stop_text: str) -> Finish:
        return Finish(stop_text=stop_text, num_cached_tokens=self._cached_tokens())

    def _cached_tokens(self) -> int:
        if self._num_cached_tokens is not None:
            return self._num_cached_tokens
        return self._ended.num_cached_tokens if self._ended is not None else 0

    # ---- resumption -----------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Reach the state after the tokens that the caller has. If these are all, the stream is finished."""
        generation = self.generation
        received_ids = generation.received_ids
        if not received_ids:
            return
        is_past_min = len(received_ids) > generation.min_tokens
        if received_ids[-1] in generation.end_token_ids and is_past_min:
            self._finish = Finish(stop_token_id=received_ids[-1])
        elif len(received_ids) >= generation.max_tokens:
            self._finish = Finish()
        if self._text is not None:
            self._decode_text(
                self._text, received_ids, silent_last=self._finish.stop_token_id if self._finish else None
            )
        self.num_output_tokens = self._num_given
        self._decoded_text = []
