"""Do /healthz and /readyz follow the scheduler, and does their server refuse whatever else is asked of it?"""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pagewire.ipc.requests import EngineState
from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, gateway_command
from tests.fakes.tiny_model import write_tiny_model
from tests.integration.test_gateway_process import run_to_failure


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeScheduler]:
    with FakeScheduler(f"ipc://{tmp_path_factory.mktemp('s')}/r") as fake:
        yield fake


@pytest.fixture(scope="module")
def port(model: Path, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The HTTP port of a gateway."""
    log = tmp_path_factory.mktemp("log") / "log"
    with GatewayProcess(model, scheduler.address, log, "--http", "127.0.0.1:0") as gateway:
        gateway.wait_until_serving()
        yield gateway.http_port()


def ask(port: int, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of the answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(request)
        answer = b""
        # Whoever closes before it has read all resets the connection, once its answer has come.
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.lower().split(": ", 1) for line in lines if line), body


def get(port: int, path: str) -> tuple[str, dict[str, object]]:
    status, _, body = ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return status.removeprefix("HTTP/1.1 "), json.loads(body)


def test_probes_follow_the_scheduler(port: int, scheduler: FakeScheduler) -> None:
    assert get(port, "/healthz")[0] == "200 OK"
    # The fake scheduler's load is never zero.
    assert get(port, "/readyz?verbose") == ("200 OK", {"state": "busy", "reason": "", "processes": []})
    for state, live, said in (
        (EngineState.STARTING, "200 OK", "starting"),
        (EngineState.UNAVAILABLE, "503 Service Unavailable", "dead"),
        (EngineState.DRAINING, "200 OK", "draining"),
    ):
        scheduler.set_state(state, stage="loading", detail="no memory")
        while (answer := get(port, "/readyz"))[1]["state"] != said:
            pass
        assert answer[0] == "503 Service Unavailable"
        assert answer[1]["reason"] in ("loading", "no memory", "the engine no memory")
        assert get(port, "/healthz")[0] == live
    scheduler.set_state(EngineState.READY)
    while get(port, "/readyz")[0] != "200 OK":
        pass


def test_head_has_no_body(port: int) -> None:
    status, headers, body = ask(port, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"POST /readyz HTTP/1.0\r\n\r\n", 405),
        (b"GET / HTTP/1.0\r\n\r\n", 404),
        (b"GET /readyz/ HTTP/1.0\r\n\r\n", 404),
        (b"GET /readyz HTTP/1.1\r\n\r\n", 400),
        (b"GET /readyz\r\n\r\n", 400),
        (b"GET  /readyz HTTP/1.1\r\n\r\n", 400),
        (b"GET /readyz HTTP/2.0\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /readyz HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    ],
)
def test_other_requests_are_refused(port: int, request_head: bytes, status: int) -> None:
    line, headers, body = ask(port, request_head)
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert headers.get("allow") == ("get, head" if status == 405 else None)
    assert json.loads(body)["error"]["message"]


def test_an_http_port_in_use_is_told(model: Path, tmp_path: Path, port: int) -> None:
    flags = ("--listen", "127.0.0.1:0", "--http", f"127.0.0.1:{port}")
    # Where there is a scheduler, the gateway may find it and say so first.
    command = gateway_command(model, f"ipc://{tmp_path}/nobody", *flags)
    assert f"cannot listen on 127.0.0.1:{port}" in run_to_failure(command)
