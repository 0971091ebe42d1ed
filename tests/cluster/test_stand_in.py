"""Does the stand-in for a cluster do what Kubernetes does? With containers that are quick to start."""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.pod import Pod
from tests.cluster.volumes import Stores
from tests.cluster.waiting import until
from tests.fakes.chart import Manifest

PORT, ECHO = 8086, 7000
LABELS = {"app": "stand-in"}
_PROBE = {"grpc": {"port": PORT}, "periodSeconds": 0.2, "timeoutSeconds": 5}
CONTAINER = {
    "name": "main",
    "command": ["python", "-m", "tests.cluster.stand_in"],
    "args": [f"--port={PORT}", "--state=/state", f"--echo={ECHO}"],
    "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    "startupProbe": {**_PROBE, "grpc": {"port": PORT, "service": "liveness"}, "failureThreshold": 100},
    "readinessProbe": _PROBE,
    "livenessProbe": {**_PROBE, "grpc": {"port": PORT, "service": "liveness"}},
    "volumeMounts": [{"name": "state", "mountPath": "/state"}],
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    },
}
POD = {
    "metadata": {"labels": LABELS, "name": "lonely", "namespace": "here"},
    "spec": {
        "securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001},
        "containers": [CONTAINER],
        "volumes": [{"name": "state", "emptyDir": {}}],
    },
}
LOOK_UP = "import json, socket, sys; print(json.dumps(sorted(socket.gethostbyname_ex(sys.argv[1])[2])))"


def kind_of(kind: str, replicas: int, **spec: object) -> Manifest:
    metadata = {"name": kind.lower(), "namespace": "here"}
    return {"kind": kind, "metadata": metadata, "spec": {"replicas": replicas, "template": POD, **spec}}


def service(name: str, **spec: object) -> Manifest:
    return {"kind": "Service", "metadata": {"name": name, "namespace": "here"}, "spec": {"selector": LABELS, **spec}}


def with_container(**changes: object) -> Manifest:
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0] |= changes
    return pod


def run(folder: Path, act: Callable[[Cluster], Awaitable[None]], *manifests: Manifest) -> None:
    async def scene() -> None:
        async with Cluster(manifests, folder, Stores(), print) as cluster:
            await cluster.wait_until_ready()
            await act(cluster)

    asyncio.run(scene())


def story(pod: Pod) -> list[str]:
    with suppress(FileNotFoundError):
        return (pod.volume("state") / "story").read_text().splitlines()
    return []


async def look_up(cluster: Cluster, name: str) -> list[str]:
    """What another pod finds under a name."""
    asking = copy.deepcopy(POD) | {"metadata": {"name": "asking", "namespace": "here", "labels": {}}}
    asking["spec"]["containers"][0] |= {"command": ["python", "-c", LOOK_UP, name], "args": []}
    pod = cluster.pod(asking)
    assert await pod.run() == 0, pod.log("main").read_text()
    found: list[str] = json.loads(pod.log("main").read_text())
    return found


def test_services_name_the_pods_that_are_ready_or_all(tmp_path):
    async def act(cluster: Cluster) -> None:
        first, second = cluster.pods
        both = sorted(pod.link.address for pod in cluster.pods)
        assert await look_up(cluster, "ready") == await look_up(cluster, "all.here.svc.cluster.local") == both
        assert await look_up(cluster, "statefulset-1.all.here") == [second.link.address]
        (first.volume("state") / "unready").touch()
        await until(lambda: not first.is_ready)
        assert await look_up(cluster, "ready") == [second.link.address]
        assert await look_up(cluster, "all") == both
        assert first.num_restarts == 0

    stateful = kind_of("StatefulSet", 2, podManagementPolicy="Parallel", updateStrategy={"type": "RollingUpdate"})
    run(tmp_path, act, stateful, service("ready"), service("all", publishNotReadyAddresses=True))


def test_containers_run_as_the_manifest_says_and_are_started_again_when_they_hang_or_die(tmp_path):
    pod = with_container(lifecycle={"preStop": {"exec": {"command": ["sh", "-c", "echo hook $$ >>/state/story"]}}})
    pod["spec"]["containers"][0]["args"] = [*CONTAINER["args"], "--stubborn"]
    pod["spec"]["terminationGracePeriodSeconds"] = 1

    async def act(cluster: Cluster) -> None:
        running = cluster.pod(pod)
        running.start()
        await running.wait_until_ready()
        assert story(running) == ["started lonely 1 10001"]
        hung = running.volume("state") / "hung"
        hung.touch()
        await until(lambda: len(story(running)) > 2)
        hung.unlink()
        await until(lambda: len(story(running)) > 3)
        first, hook, signalled, again = story(running)
        assert (first, signalled, again) == ("started lonely 1 10001", "SIGTERM", "started lonely 1 10001")
        assert hook.startswith("hook ")
        await running.wait_until_ready()
        running.kill()
        await until(lambda: any("starts again in 10 s" in event for event in cluster.events))
        assert not running.is_ready
        await running.delete()

    run(tmp_path, act)


def test_what_does_not_start_up_in_time_is_started_again(tmp_path):
    async def act(cluster: Cluster) -> None:
        pod = cluster.pod(
            with_container(command=["sleep", "1000"], args=[], startupProbe={**_PROBE, "failureThreshold": 2})
        )
        pod.manifest["spec"]["terminationGracePeriodSeconds"] = 0.5
        pod.start()
        await until(lambda: pod.num_restarts == 1)
        assert any("startup probe failed" in event for event in cluster.events)

    run(tmp_path, act)


def test_a_rolling_restart_keeps_enough_pods_and_goes_in_order(tmp_path):
    async def act(cluster: Cluster) -> None:
        ready = {"deployment": 3, "statefulset": 3}
        most = dict(ready)
        gone = []
        restarting = asyncio.create_task(cluster.restart_all())
        old = {pod.name: pod for pod in cluster.pods}
        while not restarting.done():
            for name, controller in cluster.controllers.items():
                ready[name] = min(ready[name], sum(pod.is_ready for pod in controller.pods))
                most[name] = max(most[name], sum(not pod.is_deleting for pod in controller.pods))
            gone += [name for name, pod in old.items() if pod.is_deleting and name not in gone]
            await asyncio.sleep(0.01)
        await restarting
        assert ready == {"deployment": 3, "statefulset": 2}
        assert most == {"deployment": 4, "statefulset": 3}
        assert [name for name in gone if "statefulset" in name] == ["statefulset-2", "statefulset-1", "statefulset-0"]
        assert not set(old.values()) & set(cluster.pods)
        await cluster.delete_all()
        assert cluster.pods == []

    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    deployment = kind_of("Deployment", 3, strategy=rolling)
    stateful = kind_of("StatefulSet", 3, podManagementPolicy="Parallel", updateStrategy={"type": "RollingUpdate"})
    run(tmp_path, act, deployment, stateful)


def test_a_pod_that_ends_leaves_its_services_first_and_is_killed_at_the_end_of_its_grace(tmp_path):
    pod = with_container(args=[*CONTAINER["args"], "--stubborn"], lifecycle={"preStop": {"sleep": {"seconds": 1}}})
    pod["spec"]["terminationGracePeriodSeconds"] = 3

    async def act(cluster: Cluster) -> None:
        running = cluster.pod(pod)
        running.start()
        await running.wait_until_ready()
        assert await look_up(cluster, "ready") == [running.link.address]
        state = running.volume("state")
        deleting = asyncio.create_task(running.delete())
        await asyncio.sleep(0)
        assert not running.is_ready
        assert (state / "story").read_text().splitlines() == ["started lonely 1 10001"]
        await until(lambda: len(story(running)) == 2)
        await deleting
        assert any("was killed, since it had not ended after 3 s" in event for event in cluster.events)
        assert not state.exists()

    run(tmp_path, act, service("ready"))


def test_a_pod_that_is_cut_off_reaches_no_other_and_is_still_probed(tmp_path):
    talk = "import socket, sys; s = socket.create_connection((sys.argv[1], 7000), 1); s.send(b'a\\n'); print(s.recv(9))"

    async def act(cluster: Cluster) -> None:
        first, second = cluster.pods

        async def reaches() -> bool:
            command = [*second.link.enter(), "python3", "-c", talk, first.link.address]
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
            return await process.wait() == 0

        assert await reaches()
        first.link.cut()
        assert not await reaches()
        (first.volume("state") / "unready").touch()
        await until(lambda: not first.is_ready)
        (first.volume("state") / "unready").unlink()
        await until(lambda: first.is_ready)
        first.link.restore()
        assert await reaches()

    stateful = kind_of("StatefulSet", 2, podManagementPolicy="Parallel", updateStrategy={"type": "RollingUpdate"})
    run(tmp_path, act, stateful)
