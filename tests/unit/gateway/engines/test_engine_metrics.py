"""Is the scheduler asked once for all who want its metrics, and does nobody wait for one that is silent?"""

import asyncio
from collections.abc import Awaitable, Callable

from pagewire.ipc.requests import GetMetrics, MetricValues
from scheduler_service.gateway.engines.engine_metrics import EngineMetrics
from tests.fakes.patience import PATIENCE_S

AT_ONCE_S = 0.01


def values(number: int) -> MetricValues:
    return MetricValues(number, {"engine": "0"}, [])


def run(work: Callable[[EngineMetrics, list[int]], Awaitable[None]], *, is_there: bool = True) -> None:
    """Run with the numbers of the questions that were sent."""

    async def main() -> None:
        asked: list[int] = []

        def send(question: GetMetrics) -> bool:
            asked.append(question.number)
            return is_there

        await work(EngineMetrics(send), asked)

    asyncio.run(main())


def test_all_who_ask_meanwhile_get_one_answer() -> None:
    async def work(metrics: EngineMetrics, asked: list[int]) -> None:
        asking = [asyncio.create_task(metrics.ask(PATIENCE_S)) for _ in range(3)]
        await asyncio.sleep(0)
        assert asked == [1]
        metrics.take(values(1))
        assert await asyncio.gather(*asking) == [values(1)] * 3
        again = asyncio.create_task(metrics.ask(PATIENCE_S))
        await asyncio.sleep(0)
        assert asked == [1, 2]
        metrics.take(values(2))
        assert await again == values(2)

    run(work)


def test_a_silent_scheduler_is_not_waited_for() -> None:
    async def work(metrics: EngineMetrics, asked: list[int]) -> None:
        patient = asyncio.create_task(metrics.ask(PATIENCE_S))
        assert await metrics.ask(AT_ONCE_S) is None
        assert await metrics.ask(AT_ONCE_S) is None
        assert asked == [1, 2]
        # Too late for those who asked first, and no answer to whoever asks now.
        metrics.take(values(1))
        patient.cancel()
        await asyncio.wait([patient])
        assert patient.cancelled()
        asking = asyncio.create_task(metrics.ask(PATIENCE_S))
        await asyncio.sleep(0)
        metrics.take(values(2))
        metrics.take(values(3))
        assert await asking == values(3)

    run(work)


def test_one_who_leaves_takes_the_answer_from_nobody() -> None:
    async def work(metrics: EngineMetrics, asked: list[int]) -> None:
        first, second = (asyncio.create_task(metrics.ask(PATIENCE_S)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        metrics.take(values(1))
        assert await second == values(1)
        assert asked == [1]

    run(work)


def test_without_a_scheduler_there_is_no_answer() -> None:
    async def work(metrics: EngineMetrics, asked: list[int]) -> None:
        assert await metrics.ask(PATIENCE_S) is None

    run(work, is_there=False)
