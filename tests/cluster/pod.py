"""What is a pod here? A network, volumes, and containers that a small kubelet keeps."""

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.container import Container, Surroundings
from tests.cluster.keeper import Keeper
from tests.cluster.network import Link, Network
from tests.cluster.volumes import Stores, Volumes
from tests.cluster.waiting import until
from tests.fakes.chart import Manifest


@dataclass(frozen=True, slots=True)
class Node:
    """What pods need of the machine that they run on.

    Attributes:
        network: connects them.
        stores: what their volumes are filled from.
        folder: for their volumes, logs and file systems.
        domain: of the cluster.
        tell: takes what happens, in words.
    """

    network: Network
    stores: Stores
    folder: Path
    domain: str
    tell: Callable[[str], None]


class Pod:
    """Runs from `start` to `delete`.

    Args:
        template: of a Deployment or StatefulSet, or a Pod's own manifest.
        name: that it gets.
        namespace: and where.
    """

    def __init__(self, template: Manifest, name: str, namespace: str, node: Node) -> None:
        self.manifest = copy.deepcopy(template)
        self.manifest["metadata"] |= {"name": name, "namespace": namespace}
        self.name = name
        self.namespace = namespace
        self.is_deleting = False
        self.link: Link | None = None
        self._node = node
        self._began_s = time.monotonic()
        self._keepers: dict[str, Keeper] = {}
        self._volumes: Volumes
        self._starting: asyncio.Task[None] | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        """By which services find it."""
        labels: Mapping[str, str] = self.manifest["metadata"]["labels"]
        return labels

    @property
    def is_ready(self) -> bool:
        """Whether all its containers are, and it is to stay."""
        return self.was_ready_for(0.0)

    def was_ready_for(self, duration_s: float) -> bool:
        """Whether it is ready, and has been for so long."""
        latest_s = time.monotonic() - duration_s
        since_s = [keeper.ready_since_s for keeper in self._keepers.values()]
        return bool(since_s) and not self.is_deleting and all(one is not None and one <= latest_s for one in since_s)

    @property
    def num_restarts(self) -> int:
        """Of its containers."""
        return sum(keeper.num_restarts for keeper in self._keepers.values())

    def start(self) -> None:
        """Give it a network and volumes, run its init containers one after another, and start the others."""
        self.link = self._node.network.connect(self.name)
        folder = self._folder()
        self._volumes = Volumes(self.manifest, folder / "volumes", self._node.stores)
        self._starting = asyncio.create_task(self._start_containers())

    async def run(self) -> int:
        """Run its one container to its end, as a job's pod; gives the exit status."""
        self.link = self._node.network.connect(self.name)
        self._volumes = Volumes(self.manifest, self._folder() / "volumes", self._node.stores)
        (manifest,) = self.manifest["spec"]["containers"]
        container = Container(manifest, self._surroundings(), 0)
        await container.start()
        status = await container.wait()
        self._take_away()
        return status

    async def wait_until_ready(self) -> None:
        """Wait for all its containers."""
        assert self._starting is not None
        await self._starting
        await until(lambda: self.is_ready)

    async def delete(self, grace_s: float | None = None) -> None:
        """What `kubectl delete pod` does: out of the services, hooks, SIGTERM, and SIGKILL after the grace period.

        Args:
            grace_s: instead of what the manifest says.
        """
        self.is_deleting = True
        self._tell("is being deleted")
        if grace_s is None:
            grace_s = self.manifest["spec"].get("terminationGracePeriodSeconds", 30)
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        await asyncio.gather(*(keeper.end(grace_s) for keeper in self._keepers.values()))
        self._take_away()
        self._tell("is gone")

    def kill(self) -> None:
        """SIGKILL to every process in it."""
        self._tell("all its processes are killed")
        for keeper in self._keepers.values():
            keeper.kill()

    def log(self, container: str) -> Path:
        """What a container has written."""
        return self._folder() / f"{container}.log"

    def volume(self, name: str) -> Path:
        """The folder of a volume."""
        return self._volumes.paths[name]

    async def _start_containers(self) -> None:
        surroundings = self._surroundings()
        for manifest in self.manifest["spec"].get("initContainers", []):
            container = Container(manifest, surroundings, 0)
            await container.start()
            status = await container.wait()
            self._tell(f"{manifest['name']}: ended with {status}")
            assert status == 0, f"init container {manifest['name']}: {self.log(manifest['name']).read_text()}"
        for manifest in self.manifest["spec"]["containers"]:
            self._keepers[manifest["name"]] = Keeper(manifest, surroundings, self._tell)

    def _surroundings(self) -> Surroundings:
        assert self.link is not None
        search = search_domains(self.namespace, self._node.domain)
        return Surroundings(self.manifest, self.link, self._volumes.paths, search, self._folder())

    def _take_away(self) -> None:
        assert self.link is not None
        self.link.remove()
        self.link = None
        self._volumes.remove()

    def _folder(self) -> Path:
        # A later pod of this name has logs of its own.
        return self._node.folder / f"{self.name}-{self._began_s:.3f}"

    def _tell(self, text: str) -> None:
        self._node.tell(f"{self.name} {text}")


def search_domains(namespace: str, domain: str) -> Sequence[str]:
    """Where a pod of a namespace looks up names."""
    return [f"{namespace}.svc.{domain}", f"svc.{domain}", domain]
