"""How are pods replaced? As Deployments and StatefulSets replace them in a rolling update."""

import asyncio
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tests.cluster.pod import Node, Pod
from tests.cluster.waiting import until
from tests.fakes.chart import Manifest

_POLL_S = 0.1


class Controller(Protocol):
    """Keeps a number of pods of one kind; `pods` has those that are there, the ending ones too."""

    pods: list[Pod]

    def start(self) -> None:
        """Start all pods."""

    async def restart(self) -> None:
        """What `kubectl rollout restart` does, until `kubectl rollout status` is content and old pods are gone."""

    async def wait_until_ready(self) -> None:
        """Wait for all pods."""

    async def lose(self, pod: Pod) -> None:
        """Lose the machine under a pod: nobody hears of it any more, and another pod takes its place."""

    async def delete(self) -> None:
        """Delete all pods."""


class _Pods:
    def __init__(self, manifest: Manifest, node: Node) -> None:
        self.pods: list[Pod] = []
        self._name = manifest["metadata"]["name"]
        self._namespace = manifest["metadata"]["namespace"]
        self._spec = manifest["spec"]
        self._settles_for_s = self._spec.get("minReadySeconds", 0)
        self._node = node

    async def wait_until_ready(self) -> None:
        await until(lambda: sum(pod.is_ready for pod in self.pods) >= self._spec["replicas"])

    async def lose(self, pod: Pod) -> None:
        assert pod.link is not None
        pod.link.cut()
        await self._end(pod, 0.0)
        self._begin(self._name_after(pod))

    async def delete(self) -> None:
        await asyncio.gather(*(self._end(pod) for pod in self.pods if not pod.is_deleting))
        await until(lambda: not self.pods)

    def _has_settled(self, pod: Pod) -> bool:
        """Whether it counts as available."""
        return pod.was_ready_for(self._settles_for_s)

    def _begin(self, name: str) -> Pod:
        pod = Pod(self._spec["template"], name, self._namespace, self._node)
        self.pods.append(pod)
        pod.start()
        return pod

    async def _end(self, pod: Pod, grace_s: float | None = None) -> None:
        await pod.delete(grace_s)
        self.pods.remove(pod)

    def _name_after(self, pod: Pod) -> str:
        """Of the pod that takes the place of another."""
        return pod.name


class Deployment(_Pods):
    """Starts new pods before it ends old ones, as far as maxSurge and maxUnavailable let it."""

    def __init__(self, manifest: Manifest, node: Node) -> None:
        super().__init__(manifest, node)
        limits = self._spec["strategy"]["rollingUpdate"]
        replicas = self._spec["replicas"]
        self._most = replicas + _share(limits["maxSurge"], replicas, math.ceil)
        self._fewest_ready = replicas - _share(limits["maxUnavailable"], replicas, math.floor)
        self._numbers = itertools.count()

    def start(self) -> None:
        for _ in range(self._spec["replicas"]):
            self._begin(self._next_name())

    async def restart(self) -> None:
        old = list(self.pods)
        num_new = 0
        ending = []
        while old:
            staying = [pod for pod in self.pods if not pod.is_deleting]
            if num_new < self._spec["replicas"] and len(staying) < self._most:
                self._begin(self._next_name())
                num_new += 1
            elif sum(map(self._has_settled, staying)) > self._fewest_ready or not old[0].is_ready:
                ending.append(asyncio.create_task(self._end(old.pop(0))))
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(_POLL_S)
        await until(lambda: sum(map(self._has_settled, self.pods)) >= self._spec["replicas"])
        await asyncio.gather(*ending)

    def _name_after(self, pod: Pod) -> str:
        return self._next_name()

    def _next_name(self) -> str:
        return f"{self._name}-{next(self._numbers)}"


class StatefulSet(_Pods):
    """Replaces one pod after another, from the last to the first, each under its own name."""

    def start(self) -> None:
        assert self._spec["podManagementPolicy"] == "Parallel"
        for ordinal in range(self._spec["replicas"]):
            self._begin(f"{self._name}-{ordinal}")

    async def restart(self) -> None:
        assert self._spec["updateStrategy"] == {"type": "RollingUpdate"}
        for old in sorted(self.pods, key=lambda pod: int(pod.name.rpartition("-")[2]), reverse=True):
            await self._end(old)
            successor = self._begin(old.name)
            await successor.wait_until_ready()
            await until(partial(self._has_settled, successor))


CONTROLLERS: dict[str, type[Deployment] | type[StatefulSet]] = {"Deployment": Deployment, "StatefulSet": StatefulSet}


def _share(limit: int | str, replicas: int, rounded: Callable[[float], int]) -> int:
    return limit if isinstance(limit, int) else rounded(int(limit.rstrip("%")) * replicas / 100)
