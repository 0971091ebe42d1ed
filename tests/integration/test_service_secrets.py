"""Does a whole service with TLS and keys work, and is none of its secrets in a command line or a log?"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pagewire_client import NO_RETRY, AuthenticationError, Client, SamplingParams, Tls
from tests.fakes.api_keys import write_keys
from tests.fakes.certificates import Authority
from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S, PATIENT, wait_until

pytestmark = pytest.mark.model

PROMPT = "a prompt that nobody else may read"
KEY = "key-of-ana"
FEW = SamplingParams(temperature=0.0, max_tokens=4)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@dataclass(frozen=True)
class Service:
    """What `pagewire serve` started, and where it logs."""

    process: psutil.Process
    address: str
    log: Path


@pytest.fixture(scope="module")
def service(demo_model: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two gateways on one port, with everything on."""
    tmp_path = tmp_path_factory.mktemp("service")
    pair = authority.issue("server")
    write_keys(tmp_path / "keys.toml", ana={})
    address, log = f"127.0.0.1:{free_port()}", tmp_path / "log"
    command = [sys.executable, "-m", "pagewire_client", "serve", str(demo_model), "--listen", address]
    command += ["--gateways", "2", "--share-port", "--api-keys", str(tmp_path / "keys.toml"), "--channelz"]
    command += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--log-level", "debug"]
    command += ["--cpu-memory-gib", "0.5", "--threads", "1"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        wait_until(lambda: "service ready" in log.read_text() or process.poll() is not None)
        yield Service(psutil.Process(process.pid), address, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


def command_lines(root: psutil.Process) -> str:
    """Of a process and all that it started, as everybody on this machine can read them."""
    return "\n".join(
        Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
        for process in [root, *root.children(recursive=True)]
    )


def test_a_service_with_everything_on_works_and_shows_no_secret(
    service: Service, authority: Authority, tmp_path: Path
) -> None:
    address, tls = service.address, Tls(ca=authority.certificate)
    with Client(address, api_key=KEY, tls=tls, retry=PATIENT) as client:
        assert client.generate(PROMPT, FEW).usage.num_output_tokens == 4
        assert KEY not in repr(vars(client)) + repr(vars(client._gateways._stubs[0]))
        gateways = {process.name for process in client.server_info().processes if process.name.startswith("gateway")}
        assert gateways == {"gateway-0", "gateway-1"}
    with Client(address, api_key="key-of-eve", tls=tls, retry=NO_RETRY) as client:
        with pytest.raises(AuthenticationError) as caught:
            client.generate(PROMPT, FEW)
        assert "key-of-eve" not in repr(caught.value)

    (tmp_path / "key").write_text(KEY + "\n")
    command = [sys.executable, "-m", "pagewire_client", "chat", "-a", address, "--tls-ca", str(authority.certificate)]
    chat = subprocess.Popen(
        [*command, "--max-tokens", "4", "--api-key-file", str(tmp_path / "key")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shown = command_lines(service.process) + command_lines(psutil.Process(chat.pid))
    out, err = chat.communicate(PROMPT + "\n", timeout=PATIENCE_S)
    assert chat.returncode == 0, err
    assert out.strip()

    wait_until(lambda: service.log.read_text().count("tenant=ana") == 2)
    log = service.log.read_text()
    assert "scheduler_service.gateway" in shown
    secrets = [KEY, "key-of-eve", hashlib.sha256(KEY.encode()).hexdigest(), PROMPT]
    secrets += (authority.certificate.parent / "server.key").read_text().splitlines()[1:2]
    assert [secret for secret in secrets if secret in shown + log + err] == []


def test_a_key_reaches_the_command_line_from_the_environment_too(service: Service, authority: Authority) -> None:
    environment = {**os.environ, "PAGEWIRE_API_KEY": KEY, "PAGEWIRE_TLS_CA": str(authority.certificate)}
    command = [sys.executable, "-m", "pagewire_client", "status", "-a", service.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "gateway-1" in done.stdout
    refused = subprocess.run(
        command,
        env={**environment, "PAGEWIRE_API_KEY": "key-of-eve"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == 1
    assert (
        refused.stderr
        == "pagewire: UNAUTHENTICATED: the API key is not valid here: check it, it may have been revoked\n"
    )
