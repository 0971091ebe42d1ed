"""How is a workload run? As concurrent streams, noting when each message came and how many tokens it had."""

import asyncio
import time
from dataclasses import dataclass, field

from pagewire_client.aio import AsyncClient
from pagewire_client.bench.workload import Workload
from pagewire_client.params import SamplingParams
from pagewire_client.progress import BatchProgress


@dataclass(slots=True)
class Trace:
    """One request: when it was sent, and (time, tokens) of each message. Times are monotonic seconds."""

    sent_s: float
    messages: list[tuple[float, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Output tokens received."""
        return sum(count for _, count in self.messages)


async def warm_up(client: AsyncClient) -> None:
    """Run one tiny request, so that nothing is done for the first time while measured."""
    await client.generate([1, 2, 3, 4], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))


async def run_workload(client: AsyncClient, workload: Workload, progress: BatchProgress) -> list[Trace]:
    """Run all requests.

    Raises:
        RequestError: one failed; a benchmark with failures measures nothing.
    """
    models = await client.list_models()
    slots = asyncio.Semaphore(workload.concurrency)
    params = SamplingParams(
        temperature=workload.temperature, max_tokens=workload.output_len, ignore_eos=True, seed=workload.seed
    )

    async def run(prompt: list[int]) -> Trace:
        async with slots:
            trace = await _trace(client, prompt, params, progress)
        progress.add_done()
        return trace

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run(prompt)) for prompt in workload.prompts(models[0].vocab_size)]
    return [task.result() for task in running]


async def _trace(client: AsyncClient, prompt: list[int], params: SamplingParams, progress: BatchProgress) -> Trace:
    trace = Trace(time.monotonic())
    async with client.stream(prompt, params) as stream:
        async for chunk in stream:
            if chunk.token_ids:
                trace.messages.append((time.monotonic(), len(chunk.token_ids)))
                progress.add_tokens(len(chunk.token_ids))
    return trace
