"""Does every command line of the chart mean something? Each is given to the program that it starts."""

import sys

import pytest

import gpu_worker.__main__ as worker
import scheduler_service.core.__main__ as scheduler
import scheduler_service.gateway.__main__ as gateway
import scheduler_service.supervisor.container.__main__ as container_process
import scheduler_service.supervisor.fetch as fetch
from pagewire.ipc.curve import leaves_machine
from tests.fakes.chart import VALUE_FILES, arguments, find, pods

MODULES = {
    "scheduler_service.gateway": lambda line: gateway._parser().parse_args(line),
    "scheduler_service.core": lambda line: parsed(scheduler, line),
    "scheduler_service.supervisor.container": lambda line: container_process._parser().parse_args(line),
    "scheduler_service.supervisor.fetch": lambda line: fetch._parser().parse_args(line),
    "gpu_worker": lambda line: parsed(worker, line),
}


def parsed(module, line):
    before, sys.argv = sys.argv, ["program", *line]
    try:
        return module._parse()
    finally:
        sys.argv = before


def substituted(line, host_index):
    """As the kubelet and LeaderWorkerSet do it."""
    known = {"LWS_LEADER_ADDRESS": "leader.group.serving", "LWS_WORKER_INDEX": str(host_index)}
    for name, value in known.items():
        line = [part.replace(f"$({name})", value) for part in line]
    assert not any("$(" in part for part in line), line
    return line


def run_modules(line):
    """What a command line and the one in it are for their programs: module and flags."""
    assert line[:2] == ["python", "-m"]
    flags = MODULES[line[2]](line[3:])
    found = [(line[2], flags)]
    inner = getattr(flags, "command", [])
    return found + (run_modules([part for part in inner if part != "--"]) if inner else [])


@pytest.mark.parametrize("values", VALUE_FILES)
def test_every_command_line_is_understood(values):
    seen = set()
    for pod in pods(values):
        for host_index, found in enumerate((*pod["spec"].get("initContainers", []), *pod["spec"]["containers"])):
            line = substituted([*found["command"], *found.get("args", [])], host_index)
            if line[0] == "python" and line[1] == "-m":
                seen |= {module for module, _ in run_modules(line)}
            else:
                assert line[0] in ("cp", "pagewire", "python")
    assert seen >= set(MODULES) - ({"scheduler_service.supervisor.fetch"} if values in ("one-gpu", "mtls") else set())


@pytest.mark.parametrize("values", VALUE_FILES)
def test_settings_of_the_processes_are_valid(values, monkeypatch):
    monkeypatch.setattr(worker.os, "cpu_count", lambda: 64)
    for pod in pods(values):
        for found in pod["spec"]["containers"]:
            line = substituted([*found["command"], *found.get("args", [])], 1)
            if line[:2] != ["python", "-m"]:
                continue
            modules = dict(run_modules(line))
            if "scheduler_service.core" in modules:
                flags = modules["scheduler_service.core"]
                scheduler._config(flags)
                assert leaves_machine(flags.request_address)
                assert flags.curve_keys is not None
            if "gpu_worker" in modules:
                for spec in container_process._specs(modules["scheduler_service.supervisor.container"]):
                    flags = dict(run_modules(list(spec.command)))["gpu_worker"]
                    worker._config(flags)
                    assert flags.curve_keys is not None or not leaves_machine(flags.scheduler_address)
            if "scheduler_service.gateway" in modules:
                flags = modules["scheduler_service.gateway"]
                gateway._tls(flags)
                gateway._connections(flags)


def test_ranks_of_several_hosts_are_told_apart():
    group = find("LeaderWorkerSet", "engine", "multi-host")["spec"]["leaderWorkerTemplate"]
    ranks = []
    for index, part in enumerate(("leaderTemplate", "workerTemplate")):
        line = substituted(arguments(group[part], "worker"), index)
        (_, flags), _ = run_modules(line)
        for spec in container_process._specs(flags):
            ranks.append(dict(run_modules(list(spec.command)))["gpu_worker"].rank)
    assert ranks == list(range(16))


def test_probes_ask_where_the_processes_listen():
    for pod in pods("autoscaled"):
        for found in pod["spec"]["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind in found:
                    assert f"--health-listen=0.0.0.0:{found[kind]['grpc']['port']}" in found["args"]


def test_what_a_user_adds_is_passed_on():
    line = arguments(find("Deployment", "gateway", "one-gpu")["spec"]["template"], "gateway")
    assert "--channelz" in line
    assert "--otlp-endpoint=http://collector.monitoring:4318" in line
