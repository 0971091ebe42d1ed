"""One container's process: its own command line, unchanged, in namespaces of its own."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.image import expand, image_environment, start_script
from tests.cluster.network import Link
from tests.cluster.waiting import until
from tests.fakes.chart import Manifest


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the containers of a pod share.

    Attributes:
        pod: the pod, with the name and namespace that it was given.
        link: its network.
        volumes: the folders of its volumes.
        search: domains in which names are looked up.
        folder: for logs and file systems.
    """

    pod: Manifest
    link: Link
    volumes: Mapping[str, Path]
    search: Sequence[str]
    folder: Path


class Container:
    """Starts at once; `wait` says how it ended. Its first process has the number 1 in it, as in any container."""

    def __init__(self, manifest: Manifest, surroundings: Surroundings, start: int) -> None:
        self._surroundings = surroundings
        root = surroundings.folder / f"{manifest['name']}-{start}"
        root.mkdir(parents=True)
        self._log = surroundings.folder / f"{manifest['name']}.log"
        pod = surroundings.pod
        mounts = [
            (surroundings.volumes[mount["name"]], mount["mountPath"], mount.get("readOnly", False))
            for mount in manifest.get("volumeMounts", [])
        ]
        name = pod["metadata"]["name"]
        address = surroundings.link.address
        self._script = start_script(root, name, address, surroundings.search, mounts, manifest, pod)
        self._environment = environment_of(manifest, pod, address)
        self._line = [expand(part, self._environment) for part in (*manifest["command"], *manifest.get("args", []))]
        self._root = root
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start it; its first process is there on return."""
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._surroundings.link.enter(),
                *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"),
                *("sh", "-e", "-c", self._script, "sh", *environment, *self._line),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await until(lambda: self._process.returncode is not None or self._first() is not None)

    async def wait(self) -> int:
        """How it ended: its exit status, or the negative number of a signal."""
        status = await self._process.wait()
        with suppress(OSError):
            self._root.rmdir()
        return status

    def last_words(self) -> str:
        """The last line that it wrote, which Kubernetes shows too."""
        # unshare(1) has something to say of a process that was killed.
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if not line.startswith("unshare:")]
        return lines[-1] if lines else "it said nothing"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its first process; if that is killed, so are all others of it."""
        first = self._first()
        if first is not None:
            with suppress(ProcessLookupError):
                os.kill(first.pid, number)

    async def execute(self, command: Sequence[str]) -> int:
        """Run a command in it, as it runs itself; gives the exit status, which is 1 as well when it has ended."""
        first = self._first()
        if first is None:
            return 1
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        enter = ["nsenter", "--target", str(first.pid), "--mount", "--uts", "--net", "--pid", "--root", "--wd"]
        rights = ["--setuid", str(first.uids().real), "--setgid", str(first.gids().real)]
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *enter, *rights, "env", "-i", *environment, *command, stdout=log, stderr=log
            )
        return await process.wait()

    def _first(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                return child
        return None


def environment_of(manifest: Manifest, pod: Manifest, address: str) -> dict[str, str]:
    """What a container finds in its environment: the image's variables, its host's name, and what its manifest says."""
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "status.podIP": address,
        "spec.nodeName": "node",
    }
    environment = {**image_environment(), "HOSTNAME": pod["metadata"]["name"]}
    for variable in manifest.get("env", []):
        if "value" in variable:
            environment[variable["name"]] = expand(variable["value"], environment)
        else:
            environment[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    return environment
