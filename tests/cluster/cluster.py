"""A whole cluster: a chart's objects, running."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.controllers import CONTROLLERS, Controller
from tests.cluster.names import NameServer, addresses
from tests.cluster.network import Network
from tests.cluster.pod import Node, Pod
from tests.cluster.volumes import Stores
from tests.fakes.chart import Manifest

DOMAIN = "cluster.local"


class Cluster:
    """Runs a set of objects while it is entered, in the sandbox that this process is in.

    Deployments, StatefulSets and Services do what they do in Kubernetes; other kinds of objects change nothing here.

    Args:
        manifests: the objects.
        folder: an empty one.
        stores: secrets and claims.
        on_event: takes what happens, in words, as it happens.
    Attributes:
        controllers: by their objects' names.
        name_server: answers for the services' names.
        events: what has happened.
    """

    def __init__(
        self, manifests: Iterable[Manifest], folder: Path, stores: Stores, on_event: Callable[[str], None]
    ) -> None:
        manifests = list(manifests)
        self._began_s = time.monotonic()
        self._on_event = on_event
        self._node = Node(Network(), stores, folder, DOMAIN, self._tell)
        self._services = [manifest for manifest in manifests if manifest["kind"] == "Service"]
        self._others: list[Pod] = []
        self.events: list[str] = []
        self.controllers: dict[str, Controller] = {
            manifest["metadata"]["name"]: CONTROLLERS[manifest["kind"]](manifest, self._node)
            for manifest in manifests
            if manifest["kind"] in CONTROLLERS
        }
        self.name_server = NameServer(lambda name: addresses(name, self._services, self.pods, DOMAIN))

    @property
    def pods(self) -> list[Pod]:
        """All that are there, the ending ones too."""
        return [*(pod for controller in self.controllers.values() for pod in controller.pods), *self._others]

    async def __aenter__(self) -> Self:
        self.name_server.__enter__()
        for controller in self.controllers.values():
            controller.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What still runs ends with the sandbox.
        self.name_server.__exit__(kind, error, trace)

    async def wait_until_ready(self) -> None:
        """Wait for all pods of all controllers."""
        await asyncio.gather(*(controller.wait_until_ready() for controller in self.controllers.values()))

    async def restart_all(self) -> None:
        """A rolling restart of everything at once, as an upgrade of the release makes it."""
        await asyncio.gather(*(controller.restart() for controller in self.controllers.values()))

    async def delete_all(self) -> None:
        """Delete every pod, as an uninstallation does."""
        await asyncio.gather(*(controller.delete() for controller in self.controllers.values()))

    def pod(self, manifest: Manifest) -> Pod:
        """A pod that no controller keeps."""
        metadata = manifest["metadata"]
        pod = Pod(manifest, metadata["name"], metadata["namespace"], self._node)
        self._others.append(pod)
        return pod

    def logs(self, container: str) -> str:
        """All that the containers of a name have written, those of pods that are gone too."""
        return "".join(path.read_text(errors="replace") for path in self._node.folder.glob(f"*/{container}.log"))

    def _tell(self, text: str) -> None:
        event = f"{time.monotonic() - self._began_s:6.1f} s  {text}"
        self.events.append(event)
        self._on_event(event)
