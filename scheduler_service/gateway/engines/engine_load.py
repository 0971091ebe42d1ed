"""How much work does an engine have, as far as this gateway can know it now?

The scheduler tells its load several times a second. What this gateway has sent there is known at every moment, so only
what the other gateways have sent is as old as the scheduler's last word.
"""

from dataclasses import dataclass

from pagewire.ipc.requests import Load

SEQUENCE_TOKENS = 256
"""What a sequence costs its engine beside its prompt, in prompt tokens: for its output, which nobody knows before."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Sequences that have not ended, and tokens of prompts that are still to be computed."""

    num_sequences: int
    num_tokens: int

    @property
    def work(self) -> int:
        """Both, in tokens."""
        return self.num_tokens + SEQUENCE_TOKENS * self.num_sequences


class LoadEstimate:
    """One engine's load, from its word and from what this gateway sends there and gets back."""

    def __init__(self) -> None:
        self._own_sequences = 0
        self._own_tokens = 0
        self._others_sequences = 0
        self._others_tokens = 0

    def take(self, load: Load) -> None:
        """The scheduler's word: what of it is not this gateway's own is the other gateways'."""
        self._others_sequences = max(load.num_running + load.num_waiting - self._own_sequences, 0)
        self._others_tokens = max(load.num_tokens_to_compute - self._own_tokens, 0)

    def enter(self, num_tokens: int) -> "Share":
        """A request is sent there; so many of its tokens are to be computed, as far as is known."""
        self._own_sequences += 1
        self._own_tokens += num_tokens
        return Share(self, num_tokens)

    def leave(self, num_sequences: int, num_tokens: int) -> None:
        """For `Share`: so much of what entered is done."""
        self._own_sequences -= num_sequences
        self._own_tokens -= num_tokens

    @property
    def now(self) -> EngineLoad:
        """The load at this moment."""
        return EngineLoad(self._own_sequences + self._others_sequences, self._own_tokens + self._others_tokens)


class Share:
    """One request's part of an engine's load, until it ends or goes elsewhere."""

    def __init__(self, estimate: LoadEstimate, num_tokens: int) -> None:
        self._estimate: LoadEstimate | None = estimate
        self._num_tokens = num_tokens

    def note_output(self) -> None:
        """Its first output came: its prompt is computed. Further calls change nothing."""
        if self._estimate is not None and self._num_tokens:
            self._estimate.leave(0, self._num_tokens)
            self._num_tokens = 0

    def end(self) -> None:
        """The engine runs it no more. Further calls change nothing."""
        if self._estimate is not None:
            self._estimate.leave(1, self._num_tokens)
            self._estimate = None
