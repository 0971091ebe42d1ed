"""How fast is a model when all prompts are there at once? What `LLM.generate` does with them, timed as a whole."""

import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pagewire_client.aio import AsyncClient
from pagewire_client.batch import Job, run_jobs
from pagewire_client.bench.workload import Summary, Workload
from pagewire_client.errors import PagewireError
from pagewire_client.outputs import RequestOutput
from pagewire_client.params import SamplingParams

_WARM_UP = Job([1, 2, 3, 4], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """One run over all prompts."""

    wall_s: float
    output_tokens_per_s: float
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class OfflineReport:
    """All runs, and the median of their rates.

    Each run has a cache salt of its own, so that it finds nothing in the prefix cache; with `prompts_cached` the same
    prompts ran once before with the run's salt.
    """

    workload: Summary
    prompts_cached: bool
    detokenize: bool
    output_tokens_per_s: float
    runs: list[OfflineRun]


async def run_offline(
    address: str,
    workload: Workload,
    *,
    num_repeats: int = 1,
    prompts_cached: bool = False,
    detokenize: bool = True,
    on_run: Callable[[OfflineRun], None] = lambda run: None,
) -> OfflineReport:
    """Run a workload on a service that is ready, again and again.

    Raises:
        PagewireError: a request failed, or made another number of tokens than asked for.
    """
    runs = []
    async with AsyncClient(address) as client:
        await _generate(client, [_WARM_UP])
        for _ in range(num_repeats):
            salt = secrets.token_hex(8)
            if prompts_cached:
                await _run(client, workload, salt, detokenize)
            runs.append(await _run(client, workload, salt, detokenize))
            on_run(runs[-1])
    median = statistics.median(run.output_tokens_per_s for run in runs)
    return OfflineReport(workload.summary, prompts_cached, detokenize, median, runs)


async def _run(client: AsyncClient, workload: Workload, salt: str, detokenize: bool) -> OfflineRun:
    jobs = [
        Job(request.prompt, replace(workload.params(request), detokenize=detokenize), cache_salt=salt)
        for request in workload.requests
    ]
    start_s = time.perf_counter()
    outputs = await _generate(client, jobs)
    wall_s = time.perf_counter() - start_s
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    asked = workload.summary.num_output_tokens
    if num_tokens != asked:
        raise PagewireError(f"{num_tokens} tokens came, {asked} were asked for: there is nothing to measure")
    return OfflineRun(wall_s, num_tokens / wall_s, sum(output.num_cached_tokens for output in outputs))


async def _generate(client: AsyncClient, jobs: list[Job]) -> list[RequestOutput]:
    return await run_jobs(client, jobs, lambda count: None, lambda: None)
