"""How is one Generate call answered? Accepted first, then Deltas as tokens come, then Finished, or a status."""

import asyncio
import logging
import time

from pagewire.v1 import generate_pb2
from scheduler_service.gateway.conversion import to_generation
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.handlers import CallerGoneError, Context
from scheduler_service.gateway.logprobs import to_protos
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.stream import Finish, Output, Stream

logger = logging.getLogger(__name__)


async def answer_generate(
    request: generate_pb2.GenerateRequest,
    context: Context,
    *,
    model_name: str,
    prompts: PromptReader,
    scheduler: SchedulerClient,
) -> None:
    """Answer one call. However it ends, the scheduler learns of it, once.

    Raises:
        RequestError: the call ends with this error's status.
    """
    started_s = time.monotonic()
    if request.HasField("resume"):
        # An accepted request waits for an engine that starts again, as it would had its first gateway lived.
        await scheduler.wait_for_engine()
    model, limits = scheduler.ready_engine()
    generation = await to_generation(
        request, prompts=prompts, model=model, limits=limits, time_remaining_s=context.time_remaining()
    )
    stream = scheduler.open(generation)
    outcome = "failed"
    try:
        await context.write(_accepted(generation, model_name))
        outcome = await _relay(stream, context)
    except (asyncio.CancelledError, CallerGoneError):
        outcome = "cancelled"
        raise
    finally:
        scheduler.close(stream)
        logger.info(
            "generate ended request_id=%s outcome=%s num_prompt_tokens=%d num_output_tokens=%d seconds=%.3f",
            generation.request_id,
            outcome,
            len(generation.prompt_ids),
            stream.num_output_tokens,
            time.monotonic() - started_s,
        )


async def _relay(stream: Stream, context: Context) -> str:
    """Write what the stream gives until it ends. Returns the end's name for the log."""
    generation = stream.generation
    while True:
        output = await stream.next()
        if output.token_ids or output.text:
            await context.write(generate_pb2.GenerateResponse(delta=_delta(output, generation)))
        if output.finish is not None:
            finished = _finished(stream, output.finish)
            await context.write(generate_pb2.GenerateResponse(finished=finished))
            return generate_pb2.FinishReason.Name(finished.reason)


def _accepted(generation: Generation, model_name: str) -> generate_pb2.GenerateResponse:
    return generate_pb2.GenerateResponse(
        accepted=generate_pb2.Accepted(
            request_id=generation.request_id,
            seed=generation.sampling.seed,
            num_prompt_tokens=len(generation.prompt_ids),
            model=model_name,
        )
    )


def _delta(output: Output, generation: Generation) -> generate_pb2.Delta:
    text = output.text if generation.sends_text else ""
    num_logprobs = generation.sampling.num_logprobs
    if num_logprobs is None:
        return generate_pb2.Delta(token_ids=output.token_ids, text=text)
    logprobs = to_protos(output.token_ids, output.logprobs, num_logprobs)
    return generate_pb2.Delta(token_ids=output.token_ids, text=text, logprobs=logprobs)


def _finished(stream: Stream, finish: Finish) -> generate_pb2.Finished:
    usage = generate_pb2.Usage(
        num_prompt_tokens=len(stream.generation.prompt_ids),
        num_cached_tokens=finish.num_cached_tokens,
        num_output_tokens=stream.num_output_tokens,
    )
    if finish.stop_text is not None:
        return generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_STOP, usage=usage, stop=finish.stop_text)
    if finish.stop_token_id is not None:
        return generate_pb2.Finished(
            reason=generate_pb2.FINISH_REASON_STOP, usage=usage, stop_token_id=finish.stop_token_id
        )
    return generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_LENGTH, usage=usage)
