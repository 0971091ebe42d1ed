"""What does a benchmark ask for? Prompts of random token ids, all of one length, each with its own number."""

import random
from dataclasses import dataclass

# Ids at the ends of a vocabulary are often special tokens; those in between are ordinary text.
_MARGIN_IDS = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_requests` prompts, of which `concurrency` run at a time. Lengths are in tokens."""

    num_requests: int
    concurrency: int
    input_len: int
    output_len: int
    temperature: float
    seed: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Draw the prompts; the same seed gives the same ones."""
        draw = random.Random(self.seed)  # noqa: S311 (not a secret)
        low, high = (_MARGIN_IDS, vocab_size - _MARGIN_IDS) if vocab_size > 4 * _MARGIN_IDS else (0, vocab_size)
        return [[draw.randrange(low, high) for _ in range(self.input_len)] for _ in range(self.num_requests)]
