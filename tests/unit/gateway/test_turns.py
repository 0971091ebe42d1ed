"""Do streams that all have news leave room for others on the event loop, and does each get its turn?"""

import asyncio
from itertools import count

import pytest

from scheduler_service.gateway.turns import Turns


def run_streams(num_streams: int, turn_s: float) -> list[list[int]]:
    """The streams that went on in each turn of the loop, where each turn takes so long; they come all at once."""
    clock = count()
    gone_on: list[list[int]] = []

    async def run() -> None:
        turns = Turns(lambda: next(clock) * turn_s)

        async def stream(number: int) -> None:
            await turns.take()
            gone_on[-1].append(number)

        tasks = [asyncio.create_task(stream(number)) for number in range(num_streams)]
        while not all(task.done() for task in tasks):
            gone_on.append([])
            await asyncio.sleep(0)

    asyncio.run(run())
    return gone_on


@pytest.mark.parametrize("turn_s", [0.0, 0.003, 0.01])
def test_each_goes_on_and_first_come_is_first(turn_s: float) -> None:
    gone_on = run_streams(500, turn_s)
    assert [number for turn in gone_on for number in turn] == list(range(500))
    assert max(map(len, gone_on)) == 64


def test_fewer_go_on_after_long_turns() -> None:
    numbers = [len(turn) for turn in run_streams(200, 0.01) if turn]
    assert numbers[:7] == [64, 32, 16, 8, 4, 2, 1]
    assert set(numbers[7:]) == {1}


def test_more_go_on_after_short_turns() -> None:
    async def run() -> None:
        now_s = 0.0
        turns = Turns(lambda: now_s)
        for _ in range(20):
            await turns.take()
            now_s += 0.01
            await asyncio.sleep(0)
        taken = [asyncio.create_task(turns.take()) for _ in range(3)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in taken) == 1
        await asyncio.gather(*taken)
        for _ in range(100):
            await turns.take()
            await asyncio.sleep(0)
        taken = [asyncio.create_task(turns.take()) for _ in range(70)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in taken) == 64
        await asyncio.gather(*taken)

    asyncio.run(run())


def test_who_leaves_while_waiting_keeps_nobody_back() -> None:
    async def run() -> None:
        turns = Turns()
        tasks = [asyncio.create_task(turns.take()) for _ in range(300)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait(tasks)
        assert not any(task.cancelled() for task in tasks[1::2])
        assert tasks[-2].cancelled()

    asyncio.run(run())
