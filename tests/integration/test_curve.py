"""Is a ZeroMQ socket that leaves the machine closed to whoever has no key, and open to whoever has one?"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET6, create_server

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.curve import CurveError, leaves_machine, read_pair, secure_client, secure_server
from pagewire.ipc.requests import GatewayMessage, Hello
from pagewire.v1 import inference_pb2
from pagewire_client import Client, SamplingParams
from scheduler_service.core import curve_keys
from scheduler_service.core.curve_gate import CurveGate
from scheduler_service.core.sockets import Server
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, gateway_command
from tests.fakes.patience import PATIENCE_S, wait_until
from tests.fakes.tiny_model import write_tiny_model
from tests.integration.test_gateway_process import run_to_failure
from tests.unit.gpu_worker.tiny_checkpoint import complete_greedily, write_checkpoint

EVERYWHERE = "tcp://0.0.0.0:0"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    assert curve_keys.main(["--dir", str(tmp_path / "keys")]) == 0
    return tmp_path / "keys"


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


class Gated:
    """The scheduler's request socket on all addresses of this machine, as its loop has it."""

    def __init__(self, context: zmq.Context, keys: Path) -> None:
        self.gate = CurveGate(context, keys)
        self.server: Server[GatewayMessage] = Server(
            context, EVERYWHERE, GatewayMessage, new_incarnation(), "gateway", keys
        )
        self.address = f"tcp://127.0.0.1:{self.server.address.rpartition(':')[2]}"

    def turn(self) -> list[GatewayMessage]:
        """What has arrived by now."""
        self.gate.answer()
        return [envelope.message for _, envelope in self.server.receive()]

    def try_to_enter(self, socket: zmq.Socket) -> tuple[int, list[GatewayMessage]]:
        """Connect and greet: how the handshake ends, and what the scheduler gets."""
        monitor = socket.get_monitor_socket()
        socket.connect(self.address)
        socket.send(Codec(GatewayMessage).encode(Hello("test"), new_incarnation(), ANY))
        outcomes = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        outcomes |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        event, messages, deadline_s = 0, [], time.monotonic() + PATIENCE_S
        while not event & outcomes or (event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not messages):
            assert time.monotonic() < deadline_s
            messages += self.turn()
            if not event & outcomes and monitor.poll(10):
                event = recv_monitor_message(monitor)["event"]
        return event, messages + self.turn()


@pytest.fixture
def gated(context: zmq.Context, keys: Path) -> Gated:
    return Gated(context, keys)


@pytest.fixture
def dealer(context: zmq.Context) -> zmq.Socket:
    return context.socket(zmq.DEALER)


def test_a_peer_with_an_allowed_key_is_heard(gated: Gated, dealer: zmq.Socket, keys: Path) -> None:
    secure_client(dealer, gated.address, keys, "gateway")
    assert gated.try_to_enter(dealer) == (zmq.EVENT_HANDSHAKE_SUCCEEDED, [Hello("test")])


def test_a_peer_without_a_key_is_not_heard(gated: Gated, dealer: zmq.Socket) -> None:
    event, messages = gated.try_to_enter(dealer)
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert messages == []


@pytest.mark.parametrize("role", ["stranger", "worker"])
def test_a_peer_with_another_key_is_not_heard(
    gated: Gated, dealer: zmq.Socket, keys: Path, tmp_path: Path, role: str
) -> None:
    secure_client(dealer, gated.address, keys, "worker")
    if role == "stranger":
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
    assert gated.try_to_enter(dealer) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, [])


def test_a_peer_that_takes_another_for_the_scheduler_is_not_heard(gated: Gated, dealer: zmq.Socket, keys: Path) -> None:
    secure_client(dealer, gated.address, keys, "gateway")
    dealer.curve_serverkey = zmq.curve_keypair()[0]
    event, messages = gated.try_to_enter(dealer)
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert messages == []


def test_a_key_is_let_in_as_soon_as_its_file_is_there(
    gated: Gated, dealer: zmq.Socket, context: zmq.Context, keys: Path
) -> None:
    public, secret = zmq.curve_keypair()
    for socket, expected in ((dealer, zmq.EVENT_HANDSHAKE_FAILED_AUTH), (context.socket(zmq.DEALER), None)):
        secure_client(socket, gated.address, keys, "gateway")
        socket.curve_publickey, socket.curve_secretkey = public, secret
        event, _ = gated.try_to_enter(socket)
        assert event == (expected or zmq.EVENT_HANDSHAKE_SUCCEEDED)
        (keys / "gateway-2.public").write_bytes(public)


def test_keys_are_made_once_and_only_their_owner_can_read_the_secret_ones(keys: Path, capsys) -> None:
    pair = read_pair(keys, "gateway")
    assert curve_keys.main(["--dir", str(keys)]) == 0
    assert read_pair(keys, "gateway") == pair
    assert {path.stat().st_mode & 0o777 for path in keys.glob("*.secret")} == {0o600}
    said = capsys.readouterr().out
    assert "gateway: kept" in said
    assert pair.secret.decode() not in said + repr(pair)


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("ipc:///run/x", False),
        ("inproc://x", False),
        ("tcp://127.0.0.1:5", False),
        ("tcp://127.8.0.1:*", False),
        ("tcp://localhost:5", False),
        ("tcp://[::1]:5", False),
        ("tcp://*:5", True),
        ("tcp://0.0.0.0:5", True),
        ("tcp://[::]:5", True),
        ("tcp://eth0:5", True),
        ("tcp://scheduler:5", True),
        ("tcp://10.0.0.1:5", True),
        ("tcp://127.0.0.1:0;10.0.0.1:5", True),
        ("ws://127.0.0.1:5", True),
        ("tipc://{1,0,0}", True),
    ],
)
def test_addresses_that_leave_the_machine_are_told_from_others(address: str, leaves: bool) -> None:
    assert leaves_machine(address) is leaves


def test_no_socket_is_opened_to_a_network_without_keys(dealer: zmq.Socket, tmp_path: Path) -> None:
    for secure in (secure_server, secure_client):
        with pytest.raises(CurveError, match=re.escape("give --curve-keys DIR")):
            secure(dealer, "tcp://10.0.0.1:5", None, "gateway")
        with pytest.raises(CurveError, match="there is no CURVE key in"):
            secure(dealer, "tcp://10.0.0.1:5", tmp_path, "gateway")
        secure(dealer, "ipc:///run/x", None, "gateway")


def scheduler_command(*flags: str, requests: str = EVERYWHERE) -> list[str]:
    return [sys.executable, "-m", "scheduler_service.core", "--request-address", requests, *flags]


def test_processes_refuse_to_start_without_keys(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    away = "tcp://192.0.2.1:5"
    worker = [sys.executable, "-m", "gpu_worker", "--model", str(model), "--scheduler-address", away]
    commands = {
        "scheduler": scheduler_command("--worker-address", f"ipc://{tmp_path}/w"),
        "gateway": gateway_command(model, away, "--listen", "127.0.0.1:0"),
        "gpu_worker": worker,
    }
    for name, command in commands.items():
        line = run_to_failure(command)
        assert line.startswith(f"{name}: ")
        assert "can be reached from other machines" in line


@contextmanager
def scheduler_on_a_network(keys: Path, log: Path, requests: str = EVERYWHERE) -> Iterator[tuple[str, str]]:
    """A scheduler on all addresses of this machine; where gateways and where workers find it."""
    command = scheduler_command("--worker-address", EVERYWHERE, "--curve-keys", str(keys), requests=requests)
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        ports = re.findall(r"=tcp://(?:0.0.0.0|\[::\]):(\d+)", process.stdout.readline())
        yield f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"
    finally:
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
        process.stdout.close()


def test_processes_of_one_deployment_work_together_over_a_network(keys: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "weights")
    known = ("--curve-keys", str(keys))
    with scheduler_on_a_network(keys, tmp_path / "scheduler.log") as (requests, workers):
        command = [sys.executable, "-m", "gpu_worker", "--model", str(tmp_path / "weights"), "--device", "cpu"]
        command += ["--scheduler-address", workers, "--threads", "1", "--cpu-memory-gib", "0.1", *known]
        worker = subprocess.Popen(command)
        try:
            with GatewayProcess(write_tiny_model(tmp_path / "model"), requests, tmp_path / "log", *known) as gateway:
                gateway.wait_until_serving()
                with Client(gateway.address) as client:
                    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
                    answer = client.generate([5, 6, 7], params)
        finally:
            worker.terminate()
            assert worker.wait(TIMEOUT_S) == 0
    assert list(answer.token_ids) == complete_greedily(model, [5, 6, 7], 5)


def test_a_gateway_of_another_deployment_finds_no_scheduler(keys: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    strange, log = tmp_path / "strange", tmp_path / "scheduler.log"
    curve_keys.main(["--dir", str(strange)])
    (strange / "scheduler.public").write_bytes((keys / "scheduler.public").read_bytes())
    with (
        scheduler_on_a_network(keys, log) as (address, _),
        GatewayProcess(model, address, tmp_path / "a", "--curve-keys", str(strange)) as stranger,
    ):
        wait_until(lambda: "unknown key refused role=gateway" in log.read_text())
        with GatewayProcess(model, address, tmp_path / "b", "--curve-keys", str(keys)) as known:
            wait_until(lambda: "scheduler found" in known.log_text())
        info = stranger.stub().GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=TIMEOUT_S)
        assert info.scheduler_incarnation == ""


def has_ipv6() -> bool:
    try:
        with create_server(("::1", 0), family=AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_scheduler_is_found_over_ipv6_as_over_ipv4(keys: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with scheduler_on_a_network(keys, tmp_path / "scheduler.log", "tcp://[::]:0") as (address, _):
        for number, found in enumerate((address, address.replace("127.0.0.1", "[::1]"))):
            with GatewayProcess(model, found, tmp_path / f"{number}", "--curve-keys", str(keys)) as gateway:
                wait_until(lambda gateway=gateway: "scheduler found" in gateway.log_text())
