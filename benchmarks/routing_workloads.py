"""What is asked of several engines, so that it matters which of them gets a request? Prompts that begin alike.

    chat      conversations: each turn's prompt is all that was said before, and new words
    shared    questions: each after one of many long instructions, of which some are asked far more often than others

Requests come at random times, whether the ones before are answered or not. The same seed gives the same requests.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

# Token ids that every model and tokenizer of the benchmark knows.
_FIRST_ID, _LAST_ID = 200, 9999

Range = tuple[int, int]
"""Least and most tokens."""

Ask = Callable[[list[int], int], Awaitable[list[int]]]
"""Sends a prompt and returns the so many tokens that answer it."""


class Workload(Protocol):
    """Asks from now on for so many seconds; what is not answered then is given up."""

    async def run(self, ask: Ask, seconds: float) -> None:
        """Ask."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """So many conversations begin a second."""

    per_s: float = 3.5
    mean_turns: float = 5.0
    max_turns: int = 20
    mean_pause_s: float = 2.5
    instructions: int = 64
    first_words: Range = (60, 400)
    words: Range = (20, 120)
    reply: Range = (20, 80)
    seed: int = 11

    async def run(self, ask: Ask, seconds: float) -> None:
        """Begin conversations, which all have the same instructions."""
        source = random.Random(self.seed)
        instructions = _draw(source, (self.instructions, self.instructions))

        def begin() -> Coroutine[None, None, None]:
            return self._talk(ask, instructions, random.Random(source.getrandbits(32)))

        await _begin_at_random(source, self.per_s, seconds, begin)

    async def _talk(self, ask: Ask, instructions: list[int], source: random.Random) -> None:
        said = instructions + _draw(source, self.first_words)
        num_turns = 1 + min(int(source.expovariate(1 / (self.mean_turns - 1))), self.max_turns)
        for _ in range(num_turns):
            said = said + await ask(said, source.randint(*self.reply)) + _draw(source, self.words)
            await asyncio.sleep(source.expovariate(1 / self.mean_pause_s))


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """So many questions a second; the n-th instructions are asked 1/n times as often as the first (Zipf's law)."""

    per_s: float = 16.0
    num_instructions: int = 40
    instructions: Range = (400, 1600)
    question: Range = (20, 100)
    reply: Range = (20, 60)
    seed: int = 12

    async def run(self, ask: Ask, seconds: float) -> None:
        """Ask questions."""
        source = random.Random(self.seed)
        instructions = [_draw(source, self.instructions) for _ in range(self.num_instructions)]
        weights = [1 / rank for rank in range(1, self.num_instructions + 1)]

        async def ask_once() -> None:
            prompt = source.choices(instructions, weights)[0] + _draw(source, self.question)
            await ask(prompt, source.randint(*self.reply))

        await _begin_at_random(source, self.per_s, seconds, ask_once)


WORKLOADS: dict[str, Workload] = {"chat": Chat(), "shared": SharedPrefixes()}


async def _begin_at_random(
    source: random.Random, per_s: float, seconds: float, begin: Callable[[], Coroutine[None, None, None]]
) -> None:
    """A Poisson process: at random moments, so many a second, for so many seconds. What has not ended then is cut."""
    clock = asyncio.get_running_loop().time
    start_s = due_s = clock()
    tasks: list[asyncio.Task[None]] = []
    try:
        while (due_s := due_s + source.expovariate(per_s)) < start_s + seconds:
            await asyncio.sleep(due_s - clock())
            tasks.append(asyncio.create_task(begin()))
        await asyncio.sleep(start_s + seconds - clock())
    finally:
        for task in tasks:
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _draw(source: random.Random, length: Range) -> list[int]:
    return [source.randint(_FIRST_ID, _LAST_ID) for _ in range(source.randint(*length))]
