"""What does a benchmark ask for? Prompts of random token ids, each with the number of tokens to make."""

import random
from dataclasses import dataclass

from pagewire_client.params import SamplingParams

NANO = "nano"
RANDOM = "random"

# Ids at the ends of a vocabulary are often special tokens; those in between are ordinary text.
_MARGIN_IDS = 64
_NANO_SEED = 0
_NANO_REQUESTS = 256
_NANO_MAX_ID = 10_000
_NANO_LENGTHS = (100, 1024)
_NANO_TEMPERATURE = 0.6


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how many tokens to make."""

    prompt: list[int]
    output_len: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for. `seed` is of the sampling; None lets the service draw one for each request."""

    name: str
    requests: tuple[Request, ...]
    temperature: float
    seed: int | None

    def params(self, request: Request) -> SamplingParams:
        """How a request is run: to its length, whatever token comes."""
        return SamplingParams(
            temperature=self.temperature, max_tokens=request.output_len, ignore_eos=True, seed=self.seed
        )

    @property
    def summary(self) -> "Summary":
        """What can be said of it in a few words."""
        return Summary(
            self.name,
            len(self.requests),
            sum(len(request.prompt) for request in self.requests),
            sum(request.output_len for request in self.requests),
            self.temperature,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A workload's size, for a report."""

    name: str
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    temperature: float


def random_workload(
    num_requests: int, input_len: int, output_len: int, *, temperature: float, seed: int, vocab_size: int
) -> Workload:
    """Prompts of one length; the same seed gives the same ones."""
    draw = random.Random(seed)  # noqa: S311 (not a secret)
    low, high = (_MARGIN_IDS, vocab_size - _MARGIN_IDS) if vocab_size > 4 * _MARGIN_IDS else (0, vocab_size)
    prompts = [[draw.randrange(low, high) for _ in range(input_len)] for _ in range(num_requests)]
    return Workload(RANDOM, tuple(Request(prompt, output_len) for prompt in prompts), temperature, seed)


def nano_workload(num_requests: int = _NANO_REQUESTS) -> Workload:
    """The workload of nano-vllm's bench.py, or its first requests: 142,827 tokens in and 133,966 out in all."""
    draw = random.Random(_NANO_SEED)  # noqa: S311 (not a secret)
    prompts = [
        [draw.randint(0, _NANO_MAX_ID) for _ in range(draw.randint(*_NANO_LENGTHS))] for _ in range(_NANO_REQUESTS)
    ]
    requests = [Request(prompt, draw.randint(*_NANO_LENGTHS)) for prompt in prompts]
    return Workload(NANO, tuple(requests[:num_requests]), _NANO_TEMPERATURE, None)
