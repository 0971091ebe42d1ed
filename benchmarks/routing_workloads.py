"""What is asked of several engines, so that it matters which of them gets a request? Prompts that begin alike.

    chat      conversations: each turn's prompt is all that was said before, and new words
    shared    questions: each after one of many long instructions, of which some are asked far more often than others

They come at random times, whether those before are answered or not, and all are answered in the end: with the same seed
every policy gets the same requests. Those that begin after a warm-up count, and so do the further turns of what began
after it.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

# Token ids that every model and tokenizer of the benchmark knows.
_FIRST_ID, _LAST_ID = 200, 9999

Range = tuple[int, int]
"""Least and most tokens."""


class Ask(Protocol):
    """Sends a prompt and returns the so many tokens that answer it."""

    async def __call__(self, prompt: list[int], max_tokens: int, *, counts: bool) -> list[int]:
        """Ask."""
        ...


class Workload(Protocol):
    """Begins to ask at random times for some seconds, of which the first ones are a warm-up; waits for the end of all
    that it began."""

    async def run(self, ask: Ask, warm_up_s: float, seconds: float) -> None:
        """Ask."""
        ...


@dataclass(frozen=True, slots=True)
class Chat:
    """So many conversations begin a second."""

    per_s: float = 3.5
    mean_turns: float = 5.0
    max_turns: int = 9
    mean_pause_s: float = 1.5
    max_pause_s: float = 4.0
    instructions: int = 64
    first_words: Range = (60, 400)
    words: Range = (20, 120)
    reply: Range = (20, 80)
    seed: int = 11

    async def run(self, ask: Ask, warm_up_s: float, seconds: float) -> None:
        """Begin conversations, which all have the same instructions."""
        source = random.Random(self.seed)
        instructions = _draw(source, (self.instructions, self.instructions))

        def begin(counts: bool) -> Coroutine[None, None, None]:
            return self._talk(ask, instructions, random.Random(source.getrandbits(32)), counts)

        await _begin_at_random(source, self.per_s, warm_up_s, seconds, begin)

    async def _talk(self, ask: Ask, instructions: list[int], source: random.Random, counts: bool) -> None:
        said = instructions + _draw(source, self.first_words)
        num_turns = min(1 + int(source.expovariate(1 / (self.mean_turns - 1))), self.max_turns)
        for _ in range(num_turns):
            said = said + await ask(said, source.randint(*self.reply), counts=counts) + _draw(source, self.words)
            await asyncio.sleep(min(source.expovariate(1 / self.mean_pause_s), self.max_pause_s))


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """So many questions a second; the n-th instructions are asked 1/n times as often as the first (Zipf's law)."""

    per_s: float = 16.0
    num_instructions: int = 40
    instructions: Range = (400, 1600)
    question: Range = (20, 100)
    reply: Range = (20, 60)
    seed: int = 12

    async def run(self, ask: Ask, warm_up_s: float, seconds: float) -> None:
        """Ask questions."""
        source = random.Random(self.seed)
        instructions = [_draw(source, self.instructions) for _ in range(self.num_instructions)]
        weights = [1 / rank for rank in range(1, self.num_instructions + 1)]

        async def ask_once(prompt: list[int], max_tokens: int, counts: bool) -> None:
            await ask(prompt, max_tokens, counts=counts)

        def begin(counts: bool) -> Coroutine[None, None, None]:
            prompt = source.choices(instructions, weights)[0] + _draw(source, self.question)
            return ask_once(prompt, source.randint(*self.reply), counts)

        await _begin_at_random(source, self.per_s, warm_up_s, seconds, begin)


WORKLOADS: dict[str, Workload] = {"chat": Chat(), "shared": SharedPrefixes()}


async def _begin_at_random(
    source: random.Random,
    per_s: float,
    warm_up_s: float,
    seconds: float,
    begin: Callable[[bool], Coroutine[None, None, None]],
) -> None:
    """A Poisson process: at random moments, so many a second. What begins is told whether it counts."""
    clock = asyncio.get_running_loop().time
    start_s, due_s = clock(), 0.0
    async with asyncio.TaskGroup() as group:
        while (due_s := due_s + source.expovariate(per_s)) < warm_up_s + seconds:
            await asyncio.sleep(start_s + due_s - clock())
            group.create_task(begin(due_s >= warm_up_s))


def _draw(source: random.Random, length: Range) -> list[int]:
    return [source.randint(_FIRST_ID, _LAST_ID) for _ in range(source.randint(*length))]
