"""What does a trace show of one Generate request? A span from its arrival to its end, in the terms of OpenTelemetry's
conventions for generative AI; what has no term there is called `pagewire.*`."""

import time
from collections.abc import Sequence

from pagewire.ipc.spans import Span, Tracer, Value
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import RequestError
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.trace_parent import trace_parent

_REASONS = {generate_pb2.FINISH_REASON_STOP: "stop", generate_pb2.FINISH_REASON_LENGTH: "length"}


_PARAMETERS = {
    "top_k": "top_k",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "n": "choice.count",
}


class GenerateSpan:
    """The span of one request; see `start`."""

    def __init__(self, span: Span, started_s: float) -> None:
        self._span = span
        self._started_s = started_s
        self._first_s: float | None = None
        self.context = span.context
        """Names the span, for what belongs to it."""

    @classmethod
    def start(cls, tracer: Tracer, request: generate_pb2.GenerateRequest, model: str) -> "GenerateSpan | None":
        """Start one for a request that is being answered in this task; None if its trace is not sampled."""
        operation = "chat" if request.WhichOneof("prompt") == "chat" else "text_completion"
        parent = trace_parent()
        span = tracer.start(f"{operation} {model}", parent.traceparent, is_server=True, tracestate=parent.tracestate)
        if span is None:
            return None
        span.set(
            {"gen_ai.operation.name": operation, "gen_ai.provider.name": "pagewire", "gen_ai.request.model": model}
        )
        span.set(_parameters(request))
        return cls(span, time.monotonic())

    def accept(self, generation: Generation) -> None:
        """An engine has taken the request."""
        self._span.set(
            {
                "gen_ai.response.id": generation.request_id,
                "gen_ai.request.max_tokens": generation.max_tokens,
                "gen_ai.request.temperature": generation.sampling.temperature,
                "gen_ai.request.top_p": generation.sampling.top_p,
                "gen_ai.usage.input_tokens": len(generation.prompt_ids),
                "pagewire.is_resumed": generation.is_resumed,
            }
        )
        self._span.event("accepted")

    def note_output(self) -> None:
        """There is output for the caller."""
        if self._first_s is None:
            self._first_s = time.monotonic()
            self._span.set({"gen_ai.latency.time_to_first_token": self._first_s - self._started_s})
            self._span.event("first output")

    def finish(self, finished: generate_pb2.Finished, model: str) -> None:
        """The request came to its end."""
        ends: Sequence[generate_pb2.ChoiceFinished | generate_pb2.Finished] = finished.choices or [finished]
        self._span.set(
            {
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": [_REASONS.get(end.reason, "") for end in ends],
                "gen_ai.usage.output_tokens": finished.usage.num_output_tokens,
                "gen_ai.usage.cache_read.input_tokens": finished.usage.num_cached_tokens,
            }
        )

    def fail(self, error: BaseException) -> None:
        """It did not."""
        kind = type(error).__name__
        # What is no RequestError may quote what the caller sent.
        self._span.fail(kind, str(error) if isinstance(error, RequestError) else "")

    def end(self) -> None:
        """The call is over."""
        self._span.set({"gen_ai.latency.e2e": time.monotonic() - self._started_s})
        self._span.end()


def _parameters(request: generate_pb2.GenerateRequest) -> dict[str, Value]:
    """Those that the caller gave and that are told as they are."""
    given = {field.name: value for field, value in request.sampling.ListFields()}
    # An attribute has 64 bits and a sign.
    if given.get("seed", 0) >= 1 << 63:
        del given["seed"]
    return {f"gen_ai.request.{name}": given[field] for field, name in _PARAMETERS.items() if field in given}
