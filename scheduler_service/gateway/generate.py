"""How is one Generate request answered? Accepted first, then Deltas as tokens come, then Finished, or a status."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.auth.caller import current_caller
from scheduler_service.gateway.auth.quotas import Quotas
from scheduler_service.gateway.conversion import to_generations
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.handlers import CallerGoneError
from scheduler_service.gateway.logprobs import to_protos
from scheduler_service.gateway.open_calls import OpenCalls
from scheduler_service.gateway.prompts import PromptReader, describe_prompt
from scheduler_service.gateway.sent_tokens import SentTokens
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.service_state import ServiceState
from scheduler_service.gateway.stream import Finish, Stream
from scheduler_service.gateway.turns import Turns

if TYPE_CHECKING:
    from scheduler_service.gateway.generate_span import GenerateSpan

logger = logging.getLogger(__name__)

Write = Callable[[generate_pb2.GenerateResponse], Awaitable[object]]
UseTokens = Callable[[int], None]
StartSpan = Callable[[generate_pb2.GenerateRequest], "GenerateSpan | None"]


class Generator:
    """Answers Generate requests for one model, whichever engine runs them, for every protocol.

    A protocol turns what its callers send into a GenerateRequest, and the responses written into what they expect.

    Args:
        model: the model that requests may name.
        engines: run generations.
        prompts: tokenizes prompts.
        calls: told of every call.
        state: of the service.
        start_span: starts the span of a request, if it is traced; None: no request is.
        logs_prompts: whether prompts are logged.
    """

    def __init__(
        self,
        model: ServedModel,
        engines: EnginePool,
        prompts: PromptReader,
        calls: OpenCalls,
        state: ServiceState,
        start_span: StartSpan | None = None,
        *,
        logs_prompts: bool = False,
    ) -> None:
        self._model = model
        self._engines = engines
        self._prompts = prompts
        self._calls = calls
        self._state = state
        self._quotas = Quotas()
        self._start_span = start_span
        self._logs_prompts = logs_prompts
        self._turns = Turns()

    async def answer(
        self,
        request: generate_pb2.GenerateRequest,
        write: Write,
        *,
        time_remaining_s: float | None,
        sent: Sequence[SentTokens] = (),
    ) -> None:
        """Answer one request. However it ends, cancelled too, the scheduler learns of it, once.

        Args:
            request: as its caller sent it.
            write: sends one response. Tokens that arrive while it waits go into the next one together.
            time_remaining_s: until the call's deadline; None if it has none.
            sent: of a request that resumes without token ids, what its caller has of each choice: it is not written
                again.
        Raises:
            RequestError: why the request is not completed.
        """
        span = self._start_span(request) if self._start_span is not None else None
        try:
            self._model.check_name(request.model)
            with self._calls.one():
                self._state.check_engine_can_come()
                with self._quotas.one(current_caller()) as use_tokens:
                    await self._answer(request, write, time_remaining_s, sent, use_tokens, span)
        except BaseException as error:
            if span is not None:
                span.fail(error)
            raise
        finally:
            if span is not None:
                span.end()

    async def _answer(
        self,
        request: generate_pb2.GenerateRequest,
        write: Write,
        time_remaining_s: float | None,
        sent: Sequence[SentTokens],
        use_tokens: UseTokens,
        span: "GenerateSpan | None",
    ) -> None:
        started_s = time.monotonic()
        generations = await self._read(request, time_remaining_s, sent, span)
        use_tokens(len(generations[0].prompt_ids))
        streams: list[Stream] = []
        outcome = "failed"
        try:
            streams += map(self._engines.open, generations)
            outcome = await self._run(streams, write, use_tokens, span)
        except (asyncio.CancelledError, CallerGoneError):
            outcome = "cancelled"
            raise
        finally:
            for stream in streams:
                self._engines.close(stream)
            logger.info(
                "generate ended request_id=%s tenant=%s outcome=%s num_prompt_tokens=%d "
                "num_output_tokens=%d seconds=%.3f",
                generations[0].request_id,
                generations[0].tenant,
                outcome,
                len(generations[0].prompt_ids),
                sum(stream.num_output_tokens for stream in streams),
                time.monotonic() - started_s,
            )

    async def _read(
        self,
        request: generate_pb2.GenerateRequest,
        time_remaining_s: float | None,
        sent: Sequence[SentTokens],
        span: "GenerateSpan | None",
    ) -> list[Generation]:
        """What is asked for, one for each choice."""
        if request.HasField("resume"):
            # An accepted request waits for an engine that starts again, as it would had its first gateway lived.
            await self._engines.wait_for_engine()
        model, limits = self._engines.ready_engine()
        generations = await to_generations(
            request,
            prompts=self._prompts,
            model=model,
            limits=limits,
            time_remaining_s=time_remaining_s,
            sent=sent,
            caller=current_caller(),
        )
        if self._logs_prompts:
            logger.info("prompt request_id=%s prompt=%s", generations[0].request_id, describe_prompt(request))
        if span is None:
            return generations
        return [dataclasses.replace(generation, trace_context=span.context) for generation in generations]

    async def _run(
        self, streams: Sequence[Stream], write: Write, use_tokens: UseTokens, span: "GenerateSpan | None"
    ) -> str:
        """Write all that the streams give; returns the name of the reason for which they ended."""
        for stream in streams:
            await stream.accepted()
        generations = [stream.generation for stream in streams]
        await write(_accepted(generations[0], self._model.name))
        write_output = write if span is None else _noting(write, span, generations[0])
        for response in _echoes(generations):
            await write_output(response)
        finished = _finished(streams, await _relay_all(streams, write_output, use_tokens, self._turns))
        if span is not None:
            span.finish(finished, self._model.name)
        await write(generate_pb2.GenerateResponse(finished=finished))
        return generate_pb2.FinishReason.Name(finished.reason)


def _noting(write: Write, span: "GenerateSpan", accepted: Generation) -> Write:
    """Have the span note that the request is accepted; what is returned writes, and has it note the output."""
    span.accept(accepted)

    async def note(response: generate_pb2.GenerateResponse) -> None:
        if response.HasField("delta"):
            span.note_output()
        await write(response)

    return note


async def _relay_all(streams: Sequence[Stream], write: Write, use_tokens: UseTokens, turns: Turns) -> list[Finish]:
    """Write what all streams give until they end; the first that fails ends all."""
    if len(streams) == 1:
        return [await _relay(streams[0], 0, write, use_tokens, turns)]
    turn = asyncio.Lock()

    async def write_in_turn(response: generate_pb2.GenerateResponse) -> None:
        async with turn:
            await write(response)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_relay(stream, index, write_in_turn, use_tokens, turns))
                for index, stream in enumerate(streams)
            ]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _relay(stream: Stream, index: int, write: Write, use_tokens: UseTokens, turns: Turns) -> Finish:
    """Write what one stream gives, as the output of this choice, until it ends."""
    sends_text, sampling = stream.generation.sends_text, stream.generation.sampling
    num_logprobs = sampling.num_logprobs
    while True:
        output = await stream.next(turns.take)
        use_tokens(len(output.token_ids))
        if output.prompt_ids:
            entries = to_protos(output.prompt_ids, output.prompt_logprobs, sampling.num_prompt_logprobs or 0)
            prompt = generate_pb2.Delta(index=index, prompt_logprobs=entries)
            await write(generate_pb2.GenerateResponse(delta=prompt))
        if output.token_ids or output.text:
            text = output.text if sends_text else ""
            delta = generate_pb2.Delta(index=index, token_ids=output.token_ids, text=text)
            if num_logprobs is not None:
                delta.logprobs.extend(to_protos(output.token_ids, output.logprobs, num_logprobs))
            await write(generate_pb2.GenerateResponse(delta=delta))
        if output.finish is not None:
            return output.finish


def _accepted(generation: Generation, model_name: str) -> generate_pb2.GenerateResponse:
    return generate_pb2.GenerateResponse(
        accepted=generate_pb2.Accepted(
            request_id=generation.request_id,
            seed=generation.sampling.seed,
            num_prompt_tokens=len(generation.prompt_ids),
            model=model_name,
        )
    )


def _echoes(generations: Sequence[Generation]) -> Iterator[generate_pb2.GenerateResponse]:
    """The prompt at the head of each choice, where it is wanted and was not received before."""
    for index, generation in enumerate(generations):
        if generation.echo is not None:
            text = generation.echo if generation.sends_text else ""
            delta = generate_pb2.Delta(index=index, text=text, prompt_token_ids=generation.prompt_ids)
            yield generate_pb2.GenerateResponse(delta=delta)


def _finished(streams: Sequence[Stream], finishes: Sequence[Finish]) -> generate_pb2.Finished:
    usage = generate_pb2.Usage(
        num_prompt_tokens=len(streams[0].generation.prompt_ids),
        num_cached_tokens=finishes[0].num_cached_tokens,
        num_output_tokens=sum(stream.num_output_tokens for stream in streams),
    )
    choices = [generate_pb2.ChoiceFinished(index=index, **_end(finish)) for index, finish in enumerate(finishes)]
    return generate_pb2.Finished(usage=usage, choices=choices if len(choices) > 1 else (), **_end(finishes[0]))


def _end(finish: Finish) -> dict[str, Any]:
    """Fields that say how a choice ended."""
    if finish.stop_text is not None:
        return {"reason": generate_pb2.FINISH_REASON_STOP, "stop": finish.stop_text}
    if finish.stop_token_id is not None:
        return {"reason": generate_pb2.FINISH_REASON_STOP, "stop_token_id": finish.stop_token_id}
    return {"reason": generate_pb2.FINISH_REASON_LENGTH}
