"""What do the users of the simulation ask? Lengths are lognormal, times to think exponential, all from one seed."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUM_DRAWN = 1 << 16


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lognormal numbers of tokens, cut at `most`."""

    mean: float
    sigma: float
    most: int

    def draw(self, random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """[count] numbers of at least 1."""
        median = self.mean / math.exp(self.sigma**2 / 2)
        drawn = random.lognormal(math.log(median), self.sigma, count)
        return np.clip(np.rint(drawn), 1, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Habits:
    """How users behave: each asks, reads the answer, thinks, and asks on in the same conversation or begins another.

    `goes_on` is the probability of another turn, `max_context` tokens end a conversation.
    """

    asked: Lengths
    answered: Lengths
    think_s: float = 0.0
    goes_on: float = 0.0
    max_context: int = 8192


QUESTIONS = Habits(Lengths(300, 1.0, 4096), Lengths(230, 0.7, 2048))
"""One question each, and the next at once: as many streams are open as there are users."""

CHATS = Habits(Lengths(200, 1.0, 2048), Lengths(230, 0.7, 1024), think_s=10.0, goes_on=0.8)
"""Conversations of five turns."""


@dataclass(slots=True)
class Turn:
    """What a user asks next: the conversation so far, then what is new, and how long the answer will be."""

    conversation: int
    num_history: int
    num_asked: int
    num_answered: int

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return self.num_history + self.num_asked

    @property
    def num_total(self) -> int:
        """Tokens of the conversation after the answer."""
        return self.num_history + self.num_asked + self.num_answered


class Users:
    """Draws turns and times to think. Conversations are numbered from 0, in the order in which they begin."""

    def __init__(self, habits: Habits, num_users: int, seed: int) -> None:
        self.habits = habits
        self.num_users = num_users
        self._random = np.random.default_rng(seed)
        self._history = [0] * num_users
        self._conversation = list(range(num_users))
        self._num_conversations = num_users
        self._next_ask = self._next_thought = _NUM_DRAWN

    def think_s(self) -> float:
        """How long a user thinks."""
        if self._next_thought == _NUM_DRAWN:
            self._next_thought = 0
            drawn = self._random.exponential(1.0, _NUM_DRAWN) * self.habits.think_s
            self._thoughts: list[float] = drawn.tolist()
        self._next_thought += 1
        return self._thoughts[self._next_thought - 1]

    def ask(self, user: int) -> Turn:
        """A user's next turn; the one before it is over."""
        if self._next_ask == _NUM_DRAWN:
            self._draw_asks()
        index = self._next_ask
        self._next_ask += 1
        asked, answered = self._asked[index], self._answered[index]
        history = self._history[user]
        is_too_long = history + asked + answered > self.habits.max_context
        if history and (is_too_long or self._chances[index] >= self.habits.goes_on):
            history, self._conversation[user] = 0, self._num_conversations
            self._num_conversations += 1
        self._history[user] = history + asked + answered
        return Turn(self._conversation[user], history, asked, answered)

    def _draw_asks(self) -> None:
        self._next_ask = 0
        self._asked: list[int] = self.habits.asked.draw(self._random, _NUM_DRAWN).tolist()
        self._answered: list[int] = self.habits.answered.draw(self._random, _NUM_DRAWN).tolist()
        self._chances: list[float] = self._random.random(_NUM_DRAWN).tolist()
