"""How are many prompts run at once? As concurrent streams on one connection, as many as keep the engine full.

Nobody sees output before its request has ended, so it is asked for at the end alone.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pagewire_client.aio import AsyncClient
from pagewire_client.outputs import RequestOutput, request_output
from pagewire_client.params import RequestOutputKind, SamplingParams
from pagewire_client.prompts import Prompt

# Twice what the engine runs at once keeps its queue from running dry; more would only fill buffers.
_STREAMS_PER_SEQUENCE = 2
_MIN_STREAMS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and how to run it."""

    prompt: Prompt
    params: SamplingParams
    cache_salt: str = ""
    add_special_tokens: bool | None = None


async def run_jobs(
    client: AsyncClient, jobs: Sequence[Job], on_tokens: Callable[[int], None], on_done: Callable[[], None]
) -> list[RequestOutput]:
    """Run all jobs; outputs come in the order of the jobs.

    Args:
        on_tokens: told the number of tokens in each message.
        on_done: called at the end of each request.

    Raises:
        RequestError: a request failed; the others are cancelled.
    """
    limits = (await client.server_info()).limits
    slots = asyncio.Semaphore(max(_STREAMS_PER_SEQUENCE * limits.max_num_seqs, _MIN_STREAMS))

    async def run(job: Job) -> RequestOutput:
        async with slots:
            output = await _run_job(client, job, on_tokens)
        on_done()
        return output

    return await _gather([run(job) for job in jobs])


async def _run_job(client: AsyncClient, job: Job, on_tokens: Callable[[int], None]) -> RequestOutput:
    token_ids = await _token_ids(client, job)
    params = dataclasses.replace(job.params, output_kind=RequestOutputKind.FINAL_ONLY)
    async with client.stream(token_ids, params, cache_salt=job.cache_salt) as stream:
        async for chunk in stream:
            on_tokens(len(chunk.token_ids))
        completion = await stream.collect()
    return request_output(completion, job.prompt if isinstance(job.prompt, str) else None, token_ids)


async def _token_ids(client: AsyncClient, job: Job) -> list[int]:
    """The prompt's ids, which outputs carry; so text is tokenized first and sent as ids."""
    if _is_token_ids(job.prompt):
        return list(job.prompt)  # type: ignore[arg-type]
    return list((await client.tokenize(job.prompt, add_special_tokens=job.add_special_tokens)).token_ids)


def _is_token_ids(prompt: Prompt) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and (not prompt or isinstance(prompt[0], int))


async def _gather(work: Sequence[Awaitable[RequestOutput]]) -> list[RequestOutput]:
    """Wait for all; the first failure cancels the rest and is raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
