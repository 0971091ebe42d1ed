"""How do our responses become those of vLLM's protocol?

A streamed answer is a chunk for each new output, with that output alone, then one `complete` for each choice. One that
is not streamed is the completes. A complete has all tokens of its choice; of a streamed choice the log probabilities
were in its chunks. Those of the prompt are in the first chunk of choice 0 and in every complete.
"""

from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from smg_grpc_proto.generated import vllm_engine_pb2

from pagewire.v1 import generate_pb2

_End = generate_pb2.Finished | generate_pb2.ChoiceFinished
Write = Callable[[vllm_engine_pb2.GenerateResponse], Awaitable[object]]

_FINISH_REASONS = {
    generate_pb2.FINISH_REASON_STOP: "stop",
    generate_pb2.FINISH_REASON_LENGTH: "length",
}
_ABORTED = "abort"


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    logprobs: vllm_engine_pb2.OutputLogProbs | None = None


class Answer:
    """The answer to one request.

    Args:
        request: which choices there are, and whether they are streamed.
        write: sends a response to the caller.
    """

    def __init__(self, request: vllm_engine_pb2.GenerateRequest, write: Write) -> None:
        self._write = write
        self._is_streamed: bool = request.stream
        self._stop_token_ids = frozenset(request.sampling_params.stop_token_ids)
        self._choices = [_Choice() for _ in range(max(1, min(request.sampling_params.n, 128)))]
        self._num_prompt_tokens = 0
        self._prompt_logprobs: vllm_engine_pb2.InputLogProbs | None = None
        self._has_told_prompt = False

    def begin_prompt_logprobs(self, first_token_id: int) -> None:
        """They are wanted, and the prompt begins with this token, which has none."""
        self._prompt_logprobs = vllm_engine_pb2.InputLogProbs(
            token_logprobs=[vllm_engine_pb2.InputTokenLogProb()],
            token_ids=[first_token_id],
            top_logprobs=[vllm_engine_pb2.TopLogProbs()],
        )

    async def take(self, response: generate_pb2.GenerateResponse) -> None:
        """Pass a response on."""
        match response.WhichOneof("event"):
            case "accepted":
                self._num_prompt_tokens = response.accepted.num_prompt_tokens
            case "delta":
                await self._take_delta(response.delta)
            case "finished":
                await self._finish(response.finished)

    async def abort(self) -> None:
        """The request was aborted: every choice ends with what has come of it."""
        for index in range(len(self._choices)):
            await self._complete(index, vllm_engine_pb2.GenerateComplete(finish_reason=_ABORTED))

    async def _take_delta(self, delta: generate_pb2.Delta) -> None:
        if delta.prompt_logprobs:
            self._take_prompt(delta)
            return
        choice = self._choices[delta.index]
        choice.token_ids.extend(delta.token_ids)
        if self._is_streamed:
            chunk = vllm_engine_pb2.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=self._num_prompt_tokens,
                completion_tokens=len(delta.token_ids),
                index=delta.index,
                output_logprobs=_logprobs(delta) if delta.logprobs else None,
            )
            if delta.index == 0 and not self._has_told_prompt:
                self._has_told_prompt = True
                self._add_prompt_logprobs(chunk)
            await self._write(vllm_engine_pb2.GenerateResponse(chunk=chunk))
        elif delta.logprobs:
            if choice.logprobs is None:
                choice.logprobs = vllm_engine_pb2.OutputLogProbs()
            choice.logprobs.MergeFrom(_logprobs(delta))

    def _take_prompt(self, delta: generate_pb2.Delta) -> None:
        assert self._prompt_logprobs is not None
        self._prompt_logprobs.token_ids.extend(token.token_id for token in delta.prompt_logprobs)
        self._prompt_logprobs.top_logprobs.extend(map(_top, delta.prompt_logprobs))
        for token in delta.prompt_logprobs:
            self._prompt_logprobs.token_logprobs.add(value=token.logprob)

    def _add_prompt_logprobs(
        self, response: vllm_engine_pb2.GenerateStreamChunk | vllm_engine_pb2.GenerateComplete
    ) -> None:
        if self._prompt_logprobs is not None:
            response.input_logprobs.CopyFrom(self._prompt_logprobs)

    async def _finish(self, finished: generate_pb2.Finished) -> None:
        ends: Sequence[_End] = finished.choices or [finished]
        for index, end in enumerate(ends):
            complete = vllm_engine_pb2.GenerateComplete(
                finish_reason=_FINISH_REASONS[end.reason], cached_tokens=finished.usage.num_cached_tokens
            )
            if end.WhichOneof("matched") == "stop":
                complete.matched_stop_str = end.stop
            elif end.stop_token_id in self._stop_token_ids:
                # The model's own end is no match, for vLLM.
                complete.matched_token_id = end.stop_token_id
            await self._complete(index, complete)

    async def _complete(self, index: int, complete: vllm_engine_pb2.GenerateComplete) -> None:
        choice = self._choices[index]
        complete.index = index
        complete.output_ids.extend(choice.token_ids)
        complete.prompt_tokens = self._num_prompt_tokens
        complete.completion_tokens = len(choice.token_ids)
        if choice.logprobs is not None:
            complete.output_logprobs.CopyFrom(choice.logprobs)
        self._add_prompt_logprobs(complete)
        await self._write(vllm_engine_pb2.GenerateResponse(complete=complete))


def _logprobs(delta: generate_pb2.Delta) -> vllm_engine_pb2.OutputLogProbs:
    return vllm_engine_pb2.OutputLogProbs(
        token_logprobs=[token.logprob for token in delta.logprobs],
        token_ids=delta.token_ids,
        top_logprobs=[_top(token) for token in delta.logprobs if token.top],
    )


def _top(token: generate_pb2.TokenLogprobs) -> vllm_engine_pb2.TopLogProbs:
    return vllm_engine_pb2.TopLogProbs(
        values=[top.logprob for top in token.top], token_ids=[top.token_id for top in token.top]
    )
