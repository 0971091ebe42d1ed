"""Does the chart's service answer? Its containers' own command lines as processes, with only places changed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagewire_client import Client, RetryPolicy, SamplingParams, UnavailableError
from scheduler_service.core import curve_keys
from tests.fakes.chart import container, find
from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S, wait_until

SETTINGS = (
    "worker.tensorParallelSize=2",
    "worker.cpuMemoryGib=0.25",
    "worker.gpuMemoryUtilization=0.85",
    f"engine.drainSeconds={PATIENCE_S:.0f}",
)
POD_PORTS = {
    "gateway": {50051: 0, 8000: 1, 8086: 2},
    "scheduler": {5555: 3, 8086: 4, 9400: 5},
    "worker": {8087: 6},
}


class Pods:
    """The containers of a gateway's and an engine's pod, on one machine and without a kubelet."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._first_port = free_port(7)
        (folder / "keys").mkdir()
        (folder / "run").mkdir()
        assert curve_keys.main(["--dir", str(folder / "keys")]) == 0
        self._places = {
            "/etc/pagewire/curve": str(folder / "keys"),
            "/run/pagewire": str(folder / "run"),
            "/models/model": str(model),
            "llm-pagewire-scheduler.serving.svc.cluster.local.:5555": f"localhost:{self._first_port + 3}",
        }
        self._pods = {
            "gateway": find("Deployment", "gateway", "cpu-demo", *SETTINGS)["spec"]["template"],
            "scheduler": find("StatefulSet", "engine", "cpu-demo", *SETTINGS)["spec"]["template"],
        }
        self._pods["worker"] = self._pods["scheduler"]
        self._folder = folder
        self._processes = {name: self._start(name) for name in self._pods}

    def port(self, name: str, port: int) -> int:
        """Where a container's port is here."""
        return self._first_port + POD_PORTS[name][port]

    def probe(self, name: str, kind: str) -> bool:
        """What the kubelet does, by the container's own probe."""
        asked = container(self._pods[name], name)[f"{kind}Probe"]["grpc"]
        with grpc.insecure_channel(f"127.0.0.1:{self.port(name, asked['port'])}") as channel:
            request = health_pb2.HealthCheckRequest(service=asked.get("service", ""))
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def tell_to_stop(self, *names: str) -> None:
        """SIGTERM, as all containers of a pod that is to end get it."""
        for name in names:
            self._processes[name].send_signal(signal.SIGTERM)

    def ends(self, *names: str) -> list[int]:
        """How each of them ended."""
        return [self._processes[name].wait(PATIENCE_S) for name in names]

    def kill(self) -> None:
        """End what is left."""
        for process in self._processes.values():
            process.kill()
            process.wait(PATIENCE_S)

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        found = container(self._pods[name], name)
        line = [sys.executable if part == "python" else part for part in (*found["command"], *found["args"])]
        for place, here in self._places.items():
            line = [part.replace(place, here) for part in line]
        for port in POD_PORTS[name]:
            line = [part.replace(f"0.0.0.0:{port}", f"127.0.0.1:{self.port(name, port)}") for part in line]
        assert not any("0.0.0.0" in part for part in line)
        with open(self._folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(line, stderr=log)


@pytest.fixture
def pods(tmp_path, demo_model):
    running = Pods(tmp_path, demo_model)
    yield running
    running.kill()


def wait_until_ready(pods):
    wait_until(lambda: pods.probe("gateway", "startup"))
    assert pods.probe("gateway", "liveness")
    for name in ("scheduler", "worker", "gateway"):
        wait_until(lambda name=name: pods.probe(name, "readiness"))
        assert pods.probe(name, "liveness")


@pytest.mark.model
def test_the_smoke_test_of_the_chart_succeeds_and_pods_end_in_order(pods):
    wait_until_ready(pods)
    smoke = container(find("Pod", "smoke", "cpu-demo"), "smoke")
    assert smoke["command"][0] == "pagewire"
    address = f"127.0.0.1:{pods.port('gateway', 50051)}"
    done = subprocess.run(
        [sys.executable, "-m", "pagewire_client", *smoke["command"][1:], *smoke["args"]],
        capture_output=True,
        text=True,
        env={**os.environ, "PAGEWIRE_ADDRESS": address},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "Paris" in answer["choices"][0]["text"]
    assert answer["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    names = ("gateway", "scheduler", "worker")
    pods.tell_to_stop(*names)
    assert pods.ends(*names) == [0, 0, 0]


@pytest.mark.model
def test_an_engine_that_is_to_end_finishes_its_streams_and_takes_no_others(pods):
    wait_until_ready(pods)
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    with Client(f"127.0.0.1:{pods.port('gateway', 50051)}", retry=RetryPolicy(max_attempts=1)) as client:
        undisturbed = client.generate("Once upon a time", params)
        stream = client.stream("Once upon a time", params)
        text = next(stream).text
        pods.tell_to_stop("scheduler", "worker")
        wait_until(lambda: not pods.probe("gateway", "readiness"))
        with pytest.raises(UnavailableError):
            client.generate("Another", params)
        assert text + "".join(chunk.text for chunk in stream) == undisturbed.text
    assert pods.ends("scheduler", "worker") == [0, 0]
