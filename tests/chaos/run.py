"""Kill random processes at random and at chosen moments under load, and check that no stream noticed."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.service import ChaosService, wait_until
from tests.chaos.workload import Request, Wave, differences, make_requests

# Nobody answers sooner after a death; what arrives earlier was under way.
_SETTLE_S = 0.3
# A request that is interrupted three times before it got past the place is taken for the cause, as it must be. Two
# tokens say that it got past: the second comes of a step that was not in flight before.
_TOKENS_BETWEEN = 2
_STREAM_LIMIT_S = 180.0
_MOMENTS = ("any time", "at once after recovery", "while its successor starts")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos."""

    num_kills: int
    num_streams: int
    max_tokens: int
    victims: tuple[str, ...]
    num_gateways: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """One death. `recovery_s`: until every stream that was open had more tokens, or had ended."""

    victim: str
    moment: str
    recovery_s: float


@dataclass(slots=True)
class Result:
    """What came of it; `wrong` is empty if all is well."""

    kills: list[Kill] = field(default_factory=list)
    num_streams: int = 0
    num_intact: int = 0
    wrong: list[str] = field(default_factory=list)


def run_chaos(model: Path, folder: Path, plan: Plan, *flags: str) -> Result:
    """Run the requests once undisturbed, then in waves, while processes die, until there were enough kills."""
    result = Result()
    requests = make_requests(plan.num_streams, plan.max_tokens)
    service = ChaosService(model, folder / "run", plan.num_gateways, *flags)
    try:
        expected = _undisturbed(service, requests, result)
        chaos = _Chaos(service, plan, result)
        while len(result.kills) < plan.num_kills and not result.wrong:
            chaos.run_wave(requests, expected)
        result.wrong += service.leaks()
    finally:
        result.wrong += service.close()
    return result


def _undisturbed(service: ChaosService, requests: Sequence[Request], result: Result) -> list[list[int]]:
    wave = Wave(requests, service.clients)
    wave.close()
    expected = [progress.whole or [] for progress in wave.progress]
    golden = [request.golden or tokens for request, tokens in zip(requests, expected, strict=True)]
    result.wrong += [f"undisturbed: {line}" for line in differences(requests, wave.progress, golden)]
    return expected


class _Chaos:
    def __init__(self, service: ChaosService, plan: Plan, result: Result) -> None:
        self._service = service
        self._plan = plan
        self._result = result
        self._random = random.Random(plan.seed)

    def run_wave(self, requests: Sequence[Request], expected: Sequence[list[int]]) -> None:
        wave = Wave(requests, self._service.clients)
        try:
            wait_until(lambda: wave.went_on([0] * len(requests), 1), _STREAM_LIMIT_S, "no stream begins")
            while not wave.is_over and len(self._result.kills) < self._plan.num_kills:
                self._kill_one(wave)
        except TimeoutError as error:
            self._result.wrong.append(str(error))
        wave.close()
        wrong = differences(requests, wave.progress, expected)
        self._result.num_streams += len(requests)
        self._result.num_intact += len(requests) - len(wrong)
        self._result.wrong += wrong

    def _kill_one(self, wave: Wave) -> None:
        """Choose victim and moment, and wait until all streams go on."""
        victim = self._random.choice(self._plan.victims)
        moment = _MOMENTS[len(self._result.kills) % len(_MOMENTS)]
        if moment == "any time":
            time.sleep(self._random.uniform(0.0, 1.0))
        if wave.is_over:
            return
        first = self._service.kill(victim, self._random)
        start_s = time.monotonic()
        if moment == "while its successor starts":
            wait_until(lambda: first not in _pids(self._service, victim) != [], 60.0, f"no new {victim} starts")
            time.sleep(self._random.uniform(0.0, 0.5))
            self._service.kill(victim, self._random)
        time.sleep(_SETTLE_S)
        since = wave.counts()
        wait_until(lambda: wave.went_on(since, _TOKENS_BETWEEN), _STREAM_LIMIT_S, f"streams hang after a {victim} died")
        self._result.kills.append(Kill(victim, moment, time.monotonic() - start_s))


def _pids(service: ChaosService, victim: str) -> list[int]:
    return [process.pid for process in service.processes(victim)]
