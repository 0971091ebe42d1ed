"""When do processes die? Each moment kills its victims, or stops them, and says which."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.chaos.service import ChaosService, wait_until
from tests.chaos.workload import Wave

# Nobody answers sooner after a death; what arrives earlier was under way.
SETTLE_S = 0.3
_LIMIT_S = 180.0
_HANG_LIMIT_S = 60.0
# The first step of a wave takes longer: it is full of prompts.
_FIRST_STEP_S = 0.3
_REST_S = 0.1
_PAUSE_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a moment has to do with."""

    service: ChaosService
    wave: Wave
    random: random.Random

    def find(self, victim: str) -> psutil.Process:
        """One process of a kind."""
        return self.service.find(victim, self.random)

    def sleep_up_to(self, limit_s: float) -> None:
        """Until a random moment."""
        time.sleep(self.random.uniform(0.0, limit_s))


Moment = Callable[[Scene, str], tuple[str, ...]]
"""Kills processes for the sake of one kind of victim, and gives the kinds of all that it killed, in order."""


def during_prefill(scene: Scene, victim: str) -> tuple[str, ...]:
    """Streams have been taken, and the first step, which gives none of them a token yet, is computed."""
    process = scene.find(victim)
    progress = scene.wave.progress
    wait_until(lambda: any(one.is_accepted for one in progress), _LIMIT_S, "no stream is accepted")
    scene.sleep_up_to(_FIRST_STEP_S)
    scene.service.kill(process)
    return (victim,)


def at_any_time(scene: Scene, victim: str) -> tuple[str, ...]:
    """Within a second."""
    scene.sleep_up_to(1.0)
    scene.service.kill(scene.find(victim))
    return (victim,)


def at_once(scene: Scene, victim: str) -> tuple[str, ...]:
    """As soon as all streams have gone on after the last kill."""
    scene.service.kill(scene.find(victim))
    return (victim,)


def after_a_result(scene: Scene, victim: str) -> tuple[str, ...]:
    """A step's result has left the worker, and its tokens have not reached the clients: who is to take it stands."""
    process = scene.find(victim)
    receiver = process if victim == "gateway" else scene.find("scheduler")
    with _standing(receiver):
        if victim == "gateway":
            _wait_for_tokens_of_others(scene)
        else:
            _wait_until_at_rest(scene.find("worker"))
        scene.service.kill(process)
    return (victim,)


def while_its_successor_starts(scene: Scene, victim: str) -> tuple[str, ...]:
    """Twice: again half a second, at most, after the new process is there."""
    known = scene.service.processes(victim)
    scene.service.kill(scene.random.choice(known))
    successor = scene.service.find(victim, scene.random, known)
    scene.sleep_up_to(0.5)
    scene.service.kill(successor)
    return (victim, victim)


def while_streams_come_back(scene: Scene, victim: str) -> tuple[str, ...]:
    """Twice: again when the first streams have gone on and others have not."""
    scene.service.kill(scene.find(victim))
    time.sleep(SETTLE_S)
    since = scene.wave.counts()
    wait_until(
        lambda: scene.wave.is_over or scene.wave.num_ahead(since, 1) > 0,
        _LIMIT_S,
        f"no stream goes on after a {victim} died",
    )
    scene.service.kill(scene.find(victim))
    return (victim, victim)


def stopped(scene: Scene, victim: str) -> tuple[str, ...]:
    """Hung rather than dead: the supervisor has to kill it."""
    process = scene.find(victim)
    process.suspend()
    wait_until(lambda: not process.is_running(), _HANG_LIMIT_S, f"a stopped {victim} is not replaced")
    return ()


def two_at_once(scene: Scene, victims: str) -> tuple[str, ...]:
    """Two processes in the same instant."""
    scene.sleep_up_to(0.5)
    kinds = tuple(victims.split("+"))
    first = scene.find(kinds[0])
    scene.service.kill(first, scene.service.find(kinds[1], scene.random, [first]))
    return kinds


@contextmanager
def _standing(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _wait_for_tokens_of_others(scene: Scene) -> None:
    """The steps go on: with every step there is more for the gateway that stands."""
    since, deadline_s = scene.wave.counts(), time.monotonic() + _PAUSE_LIMIT_S
    while scene.wave.num_ahead(since, 2) == 0 and time.monotonic() < deadline_s:
        time.sleep(0.01)


def _wait_until_at_rest(worker: psutil.Process) -> None:
    """It has computed what it was given and has answered."""
    deadline_s = time.monotonic() + _PAUSE_LIMIT_S
    before, now = -1.0, sum(worker.cpu_times()[:2])
    while now != before and time.monotonic() < deadline_s:
        time.sleep(_REST_S)
        before, now = now, sum(worker.cpu_times()[:2])
