"""How do the events of one Generate stream become chunks and, at its end, a completion?"""

from dataclasses import dataclass, field

import grpc

from pagewire.v1 import generate_pb2
from pagewire_client import conversion
from pagewire_client.errors import RequestError, make_error
from pagewire_client.types import Accepted, Choice, Chunk, Completion, TokenLogprobs, Usage


@dataclass(slots=True)
class _Output:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Assembly:
    """Collects one stream. `accepted` and `completion` are set once their events have come."""

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.completion: Completion | None = None
        self.has_output = False
        self._outputs: dict[int, _Output] = {}
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._num_echoes = 0

    def add(self, event: generate_pb2.GenerateResponse) -> Chunk | None:
        """Take the next event; gives the new output, if it carries any."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            return self._add_delta(event.delta)
        if kind == "accepted":
            first = event.accepted
            self.accepted = Accepted(first.request_id, first.seed, first.num_prompt_tokens, first.model)
        elif kind == "finished":
            self.completion = self._finish(event.finished)
        return None

    def continuing(self, request: generate_pb2.GenerateRequest) -> generate_pb2.GenerateRequest | None:
        """The request that goes on with this broken stream; None: nothing can.

        Args:
            request: the one that began it.
        """
        if self.accepted is None:
            return None if self.has_output else request
        again = generate_pb2.GenerateRequest()
        again.CopyFrom(request)
        again.resume.request_id = self.accepted.request_id
        again.resume.seed = self.accepted.seed
        again.resume.num_received_prompt_logprobs += len(self._prompt_logprobs)
        again.resume.num_received_echoes += self._num_echoes
        choices = {choice.index: choice for choice in again.resume.choices}
        for index, output in self._outputs.items():
            if request.sampling.n > 1:
                choice = choices.get(index) or again.resume.choices.add(index=index)
                choice.received_token_ids.extend(output.token_ids)
            else:
                again.resume.received_token_ids.extend(output.token_ids)
        return again

    def cut_off(self) -> RequestError:
        """The error for a stream that closed with OK but without its last event."""
        return make_error(grpc.StatusCode.DATA_LOSS, "the stream ended without a Finished event")

    def _add_delta(self, delta: generate_pb2.Delta) -> Chunk:
        self.has_output = True
        output = self._outputs.setdefault(delta.index, _Output())
        logprobs = conversion.token_logprobs(delta.logprobs) if delta.logprobs else ()
        prompt_logprobs = conversion.token_logprobs(delta.prompt_logprobs) if delta.prompt_logprobs else ()
        prompt_ids = tuple(delta.prompt_token_ids)
        chunk = Chunk(delta.text, tuple(delta.token_ids), delta.index, logprobs, prompt_logprobs, prompt_ids)
        self._prompt_logprobs.extend(prompt_logprobs)
        self._num_echoes += bool(prompt_ids)
        output.texts.append(chunk.text)
        output.token_ids.extend(chunk.token_ids)
        output.logprobs.extend(logprobs)
        return chunk

    def _finish(self, finished: generate_pb2.Finished) -> Completion:
        accepted = self.accepted or Accepted("", 0, finished.usage.num_prompt_tokens, "")
        usage = finished.usage
        return Completion(
            request_id=accepted.request_id,
            seed=accepted.seed,
            model=accepted.model,
            choices=tuple(self._choice(choice.index, choice) for choice in finished.choices)
            or (self._choice(0, finished),),
            usage=Usage(usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_output_tokens),
            prompt_logprobs=tuple(self._prompt_logprobs),
        )

    def _choice(self, index: int, finished: generate_pb2.Finished | generate_pb2.ChoiceFinished) -> Choice:
        output = self._outputs.get(index, _Output())
        matched = finished.WhichOneof("matched")
        return Choice(
            index=index,
            text="".join(output.texts),
            token_ids=tuple(output.token_ids),
            finish_reason=conversion.finish_reason(finished.reason),
            matched=getattr(finished, matched) if matched else None,
            logprobs=tuple(output.logprobs),
        )
