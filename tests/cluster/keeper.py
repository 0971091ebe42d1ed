"""How does the kubelet keep a container running? It starts it, listens to its probes, ends it, and starts it again."""

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.cluster.container import Container, Surroundings
from tests.cluster.probes import Probe
from tests.fakes.chart import Manifest

# Kubernetes': the first start after a death is at once; a later one waits, unless the container ran for long.
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _FORGIVEN_AFTER_S = 10.0, 300.0, 600.0
_LEAST_GRACE_S = 2.0


class Keeper:
    """Runs a container until `end`. `ready_since_s` is the time since which it is ready; `num_restarts` counts.

    Args:
        manifest: the container's.
        surroundings: of its pod.
        tell: takes what happens, in words.
    """

    def __init__(self, manifest: Manifest, surroundings: Surroundings, tell: Callable[[str], None]) -> None:
        self.ready_since_s: float | None = None
        self.num_restarts = 0
        self._manifest = manifest
        self._surroundings = surroundings
        self._tell = lambda text: tell(f"{manifest['name']}: {text}")
        self._grace_s = surroundings.pod["spec"].get("terminationGracePeriodSeconds", 30)
        self._container: Container | None = None
        self._ended: asyncio.Task[int]
        self._running = asyncio.create_task(self._run())

    def kill(self) -> None:
        """SIGKILL to all its processes, as if the kernel had run out of memory."""
        if self._container is not None:
            self._container.send(signal.SIGKILL)

    async def end(self, grace_s: float) -> None:
        """End it for good: its preStop hook, SIGTERM, and SIGKILL when the grace period is over."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        self.ready_since_s = None
        if self._container is not None:
            await self._stop(self._container, grace_s)

    async def _run(self) -> None:
        backoff_s = 0.0
        clock = asyncio.get_running_loop().time
        for start in itertools.count():
            began_s = clock()
            await self._run_once(start)
            if clock() - began_s > _FORGIVEN_AFTER_S:
                backoff_s = 0.0
            if backoff_s:
                self._tell(f"starts again in {backoff_s:.0f} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(max(2 * backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
            self.num_restarts += 1

    async def _run_once(self, start: int) -> None:
        container = Container(self._manifest, self._surroundings, start)
        await container.start()
        self._container, self._ended = container, asyncio.create_task(container.wait())
        self._tell("started")
        listening = asyncio.create_task(self._listen())
        try:
            await asyncio.wait([self._ended, listening], return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
            self.ready_since_s = None
        if not self._ended.done():
            self._tell(f"its {listening.result()} probe failed")
            await self._stop(container, self._grace_s)
        else:
            self._tell_end(container)
        self._container = None

    async def _stop(self, container: Container, grace_s: float) -> None:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + grace_s
        hook = self._manifest.get("lifecycle", {}).get("preStop")
        if hook is not None and grace_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._pre_stop(container, hook), grace_s)
        container.send(signal.SIGTERM)
        left_s = max(deadline_s - clock(), min(_LEAST_GRACE_S, grace_s))
        done, _ = await asyncio.wait([self._ended], timeout=left_s)
        if not done:
            self._tell(f"was killed, since it had not ended after {grace_s} s")
            container.send(signal.SIGKILL)
            await self._ended
        self._tell_end(container)

    def _tell_end(self, container: Container) -> None:
        status = self._ended.result()
        self._tell(f"ended with {status}{(status and f': {container.last_words()}') or ''}")

    async def _pre_stop(self, container: Container, hook: Manifest) -> None:
        """Run the hook, or wait for the container's own end, whichever comes first."""
        if "sleep" in hook:
            await asyncio.wait([self._ended], timeout=hook["sleep"]["seconds"])
        else:
            await container.execute(hook["exec"]["command"])

    async def _listen(self) -> str:
        """Follow the probes; returns the kind of the one that says that the container must end."""
        address = self._surroundings.link.address
        startup = self._probe("startup")
        if startup is not None:
            async for is_well in startup.verdicts(address):
                if not is_well:
                    return "startup"
                break
        self._tell("has started up")
        readiness, liveness = self._probe("readiness"), self._probe("liveness")
        if readiness is None:
            self.ready_since_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            if readiness is not None:
                following = group.create_task(self._follow_readiness(readiness))
            if liveness is None:
                await asyncio.get_running_loop().create_future()
            async for is_well in liveness.verdicts(address):
                if not is_well:
                    break
            if readiness is not None:
                following.cancel()
        return "liveness"

    async def _follow_readiness(self, probe: Probe) -> None:
        async for is_ready in probe.verdicts(self._surroundings.link.address):
            self.ready_since_s = time.monotonic() if is_ready else None
            self._tell("is ready" if is_ready else "is not ready")

    def _probe(self, kind: str) -> Probe | None:
        manifest = self._manifest.get(f"{kind}Probe")
        return None if manifest is None else Probe.of(manifest)
