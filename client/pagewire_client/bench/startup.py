"""How long does a service take from its start to its first token, and in which parts?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pagewire_client.client import Client
from pagewire_client.local_service import LocalService
from pagewire_client.params import SamplingParams

_PROMPT = list(range(1, 17))


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the start, as the service names it: from its first to the next one's first report."""

    name: str
    begin_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class StartupReport:
    """Seconds since the start of the first process."""

    ready_s: float
    first_token_s: float
    stages: list[Stage]


class Stopwatch:
    """Times one start of a service, of which it is told every stage."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._begins: list[tuple[str, float]] = []

    def stage(self, name: str) -> None:
        """Another part begins."""
        self._begins.append((name, self._elapsed_s))

    def finish(self, address: str, timeout_s: float | None = None) -> StartupReport:
        """The service is ready: have it make a token.

        Raises:
            RequestError: it does not, or not in time.
        """
        ready_s = self._elapsed_s
        with Client(address, timeout_s=timeout_s) as client:
            params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
            client.generate(_PROMPT, params)
        ends = [begin_s for _, begin_s in self._begins[1:]] + [ready_s]
        stages = [
            Stage(name, begin_s, end_s - begin_s) for (name, begin_s), end_s in zip(self._begins, ends, strict=True)
        ]
        return StartupReport(ready_s, self._elapsed_s, stages)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s


def measure_startup(model: str, flags: Sequence[str]) -> StartupReport:
    """Start a private service, have it make a token, and stop it.

    Raises:
        ServiceStartError: it did not start; the message says why.
    """
    stopwatch = Stopwatch()
    with LocalService(model, flags=flags) as service:
        service.wait_until_ready(on_stage=stopwatch.stage)
        return stopwatch.finish(service.addresses[0])
