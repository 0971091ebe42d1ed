"""Kill processes at random and at chosen moments under load, and check that no stream noticed."""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import moments
from tests.chaos.moments import SETTLE_S, Moment, Scene
from tests.chaos.service import ChaosService, wait_until
from tests.chaos.workload import Request, Wave, Whole, differences, make_requests

# A request that is interrupted three times before it got past the place is taken for the cause, as it must be. So all
# streams get past it before anybody dies again. The first news after a death may be old tokens that were not delivered;
# of those that follow the second comes of a step that was not in flight before.
_TOKENS_BETWEEN = 3
_STREAM_LIMIT_S = 180.0
# One thread and small steps: on a busy machine several threads wait for each other, and a step cannot be interrupted.
_FLAGS = (
    *("--cpu-memory-gib", "1", "--threads", "1", "--max-num-batched-tokens", "512"),
    *("--heartbeat-timeout", "4", "--log-level", "error"),
)

MOMENTS: dict[str, Moment] = {
    "any time": moments.at_any_time,
    "after a result": moments.after_a_result,
    "two at once": moments.two_at_once,
    "successor starts": moments.while_its_successor_starts,
    "at once again": moments.at_once,
    "stopped": moments.stopped,
    "streams come back": moments.while_streams_come_back,
}
PREFILL = "prefill"
_PAIRS_OF_KINDS = ("worker+scheduler", "scheduler+gateway", "gateway+worker")
_PAIRS = (*_PAIRS_OF_KINDS, "gateway+gateway")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos. Each wave of streams sees every moment once: its prefill, then the others in any order.

    With `knows_golden` the undisturbed greedy streams must begin as those of transformers in float32 do.
    """

    num_kills: int
    num_streams: int
    max_tokens: int
    victims: tuple[str, ...]
    num_gateways: int = 2
    seed: int = 0
    moments: tuple[str, ...] = tuple(MOMENTS)
    knows_golden: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """One disturbance. `recovery_s`: from the last death until every open stream had another token, or had ended."""

    victim: str
    moment: str
    num_kills: int
    recovery_s: float


@dataclass(slots=True)
class Result:
    """What came of it; `wrong` is empty if all is well."""

    events: list[Event] = field(default_factory=list)
    num_streams: int = 0
    num_intact: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """SIGKILLs so far."""
        return sum(event.num_kills for event in self.events)


def run_chaos(
    model: Path, folder: Path, plan: Plan, *flags: str, on_event: Callable[[Result], None] = lambda result: None
) -> Result:
    """Run the requests once undisturbed, then in waves, while processes die, until there were enough kills."""
    result = Result()
    requests = make_requests(plan.num_streams, plan.max_tokens, knows_golden=plan.knows_golden)
    service = ChaosService(model, folder / "run", plan.num_gateways, *_FLAGS, *flags)
    try:
        expected = _undisturbed(service, requests, result)
        chaos = _Chaos(service, plan, result, on_event)
        while result.num_kills < plan.num_kills and not result.wrong:
            service.client.wait_until_ready(_STREAM_LIMIT_S)
            chaos.run_wave(requests, expected)
        result.wrong += service.leaks()
    finally:
        result.wrong += service.close()
    return result


def _undisturbed(service: ChaosService, requests: Sequence[Request], result: Result) -> list[Whole]:
    wave = Wave(requests, service.client)
    wave.close()
    expected = [progress.whole or Whole([], "") for progress in wave.progress]
    golden = [
        Whole([*request.golden, *got.token_ids[len(request.golden) :]], got.text)
        for request, got in zip(requests, expected, strict=True)
    ]
    result.wrong += [f"undisturbed: {line}" for line in differences(requests, wave.progress, golden)]
    return expected


class _Chaos:
    def __init__(self, service: ChaosService, plan: Plan, result: Result, on_event: Callable[[Result], None]) -> None:
        self._service = service
        self._plan = plan
        self._result = result
        self._on_event = on_event
        self._random = random.Random(plan.seed)
        self._victims = {moment: self._shuffled_cycle(self._kinds(moment)) for moment in (PREFILL, *MOMENTS)}

    def run_wave(self, requests: Sequence[Request], expected: Sequence[Whole]) -> None:
        """Run all streams, disturbed at every moment, or until there were enough kills."""
        wave = Wave(requests, self._service.client)
        scene = Scene(self._service, wave, self._random)
        try:
            self._disturb(scene, PREFILL, moments.during_prefill)
            for name in self._random.sample(self._plan.moments, len(self._plan.moments)):
                if wave.is_over or wave.has_failed or self._result.num_kills >= self._plan.num_kills:
                    break
                self._disturb(scene, name, MOMENTS[name])
        except TimeoutError as error:
            self._result.wrong.append(str(error))
            wave.cancel()
        wave.close()
        wrong = differences(requests, wave.progress, expected)
        self._result.num_streams += len(requests)
        self._result.num_intact += len(requests) - len(wrong)
        self._result.wrong += wrong

    def _disturb(self, scene: Scene, name: str, moment: Moment) -> None:
        """Have a victim die, and wait until all streams go on."""
        victim = next(self._victims[name], None)
        if victim is None:
            return
        killed = moment(scene, victim)
        start_s = time.monotonic()
        time.sleep(SETTLE_S)
        since = scene.wave.counts()
        if scene.wave.is_over:
            return
        self._wait_until_streams_go_on(scene.wave, since, 1, f"{victim}, {name}")
        if scene.wave.has_failed:
            return
        self._result.events.append(Event(victim, name, len(killed), time.monotonic() - start_s))
        self._on_event(self._result)
        self._wait_until_streams_go_on(scene.wave, scene.wave.counts(), _TOKENS_BETWEEN, f"{victim}, {name}")

    def _wait_until_streams_go_on(
        self, wave: Wave, since: Sequence[int | None], num_tokens: int, what_died: str
    ) -> None:
        hang = f"streams hang, after {what_died}: they had {since} tokens"
        wait_until(lambda: wave.went_on(since, num_tokens), _STREAM_LIMIT_S, hang)

    def _kinds(self, moment: str) -> list[str]:
        """What dies at such a moment."""
        if moment != "two at once":
            return list(self._plan.victims)
        pairs = _PAIRS if self._plan.num_gateways > 1 else _PAIRS_OF_KINDS
        return [pair for pair in pairs if set(pair.split("+")) <= set(self._plan.victims)]

    def _shuffled_cycle(self, kinds: list[str]) -> Iterator[str]:
        return itertools.cycle(self._random.sample(kinds, len(kinds)))
