"""Does a gateway speak TLS, take new certificates while it runs, and ask for those of its callers?"""

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagewire.ipc.requests import Submit
from pagewire.v1 import generate_pb2, inference_pb2
from pagewire_client import NO_RETRY, Client, SamplingParams, Tls, UnavailableError
from scheduler_service.gateway.tls import Certificates, TlsFiles
from tests.fakes.api_keys import write_keys
from tests.fakes.certificates import Authority, Pair
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, gateway_command
from tests.fakes.patience import PATIENCE_S, wait_until
from tests.fakes.tiny_model import write_tiny_model
from tests.integration.test_gateway_process import run_to_failure

MODELS = inference_pb2.ListModelsRequest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tls_gateway(
    scheduler: FakeScheduler, model: Path, authority: Authority, server: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Plain TLS, on a TCP and on a unix socket."""
    folder = tmp_path_factory.mktemp("g")
    flags = (*tls_flags(server), "--listen", f"unix:{folder}/g.sock", "--log-level", "debug")
    trusting = authority.channel_credentials()
    with GatewayProcess(model, scheduler.address, folder / "log", *flags, credentials=trusting) as process:
        process.wait_until_serving()
        yield process
        assert process.stop() == 0


def tls_flags(pair: Pair) -> tuple[str, ...]:
    return ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))


def shown_name(address: str, authority: Authority) -> str:
    """The common name of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        subject = connection.getpeercert()["subject"]
    return str(dict(pair[0] for pair in subject)["commonName"])


def test_new_connections_see_a_new_certificate_and_old_ones_go_on(
    tls_gateway: GatewayProcess, scheduler: FakeScheduler, authority: Authority, server: Pair
) -> None:
    kept = authority.issue("kept")
    kept.replace(server)
    assert shown_name(tls_gateway.address, authority) == "server"
    call = tls_gateway.stub().Generate(generate_pb2.GenerateRequest(token_ids={"ids": [1]}), timeout=TIMEOUT_S)
    stream_id = scheduler.take(Submit).stream_id
    assert next(call).HasField("accepted")

    server.replace(authority.issue("renewed"))
    wait_until(lambda: shown_name(tls_gateway.address, authority) == "renewed")

    server.key.write_text("no key")
    wait_until(lambda: "certificates not reloaded" in tls_gateway.log_text())
    server.certificate.unlink()
    wait_until(lambda: "No such file" in tls_gateway.log_text())
    assert shown_name(tls_gateway.address, authority) == "renewed"

    scheduler.send_tokens([(stream_id, 1)], stop_at_length(stream_id))
    assert list(call)[-1].HasField("finished")
    server.replace(kept)
    wait_until(lambda: shown_name(tls_gateway.address, authority) == "server")


def test_no_key_of_a_certificate_is_in_the_log(tls_gateway: GatewayProcess, server: Pair) -> None:
    log = tls_gateway.log_text()
    assert not any(line in log for line in server.key.read_text().splitlines() if line)


def test_plaintext_and_strangers_certificates_do_not_connect(
    tls_gateway: GatewayProcess, tmp_path: Path, authority: Authority
) -> None:
    stranger = Authority(tmp_path, "stranger")
    for tls in (None, Tls(ca=stranger.certificate)):
        with (
            Client(tls_gateway.address, tls=tls, timeout_s=TIMEOUT_S, retry=NO_RETRY) as client,
            pytest.raises(UnavailableError),
        ):
            client.list_models()


def test_the_library_and_the_command_line_speak_tls(
    tls_gateway: GatewayProcess, scheduler: FakeScheduler, authority: Authority
) -> None:
    with Client(tls_gateway.address, tls=Tls(ca=authority.certificate)) as client:
        stream = client.stream([1], SamplingParams(max_tokens=1))
        stream_id = scheduler.take(Submit).stream_id
        scheduler.send_tokens([(stream_id, 1)], stop_at_length(stream_id))
        assert stream.collect().token_ids == (1,)
    command = [sys.executable, "-m", "pagewire_client", "models", "-a", tls_gateway.address]
    for flags in (["--tls-ca", str(authority.certificate)], []):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == (0 if flags else 1), done.stderr
        assert ("tiny" in done.stdout) == bool(flags)


def test_a_unix_socket_is_plaintext_for_a_client_of_tls_too(tls_gateway: GatewayProcess, authority: Authority) -> None:
    assert tls_gateway.process.stdout is not None
    path = tls_gateway.process.stdout.readline().strip().partition("=")[2]
    assert path.startswith("unix:")
    with Client(path, tls=Tls(ca=authority.certificate), retry=NO_RETRY) as client:
        assert client.list_models()


def test_mutual_tls_lets_in_whoever_the_authority_knows_and_anyone_asks_for_health(
    scheduler: FakeScheduler, model: Path, authority: Authority, tmp_path: Path
) -> None:
    callers, strangers = Authority(tmp_path / "c", "callers"), Authority(tmp_path / "s", "strangers")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(callers.certificate.read_bytes())
    flags = (*tls_flags(authority.issue("mutual")), "--tls-client-ca", str(trusted), "--health-listen", "127.0.0.1:0")
    known = authority.channel_credentials(callers.issue("caller"))
    with GatewayProcess(model, scheduler.address, tmp_path / "log", *flags, credentials=known) as gateway:
        gateway.wait_until_serving()
        assert gateway.stub().ListModels(MODELS, timeout=TIMEOUT_S)
        unknown = authority.channel_credentials(strangers.issue("stranger"))
        for credentials in (authority.channel_credentials(), unknown):
            with (
                grpc.secure_channel(gateway.address, credentials) as channel,
                pytest.raises(grpc.RpcError, match="UNAVAILABLE"),
            ):
                gateway.stub(channel).ListModels(MODELS, timeout=TIMEOUT_S)
        assert gateway.process.stdout is not None
        health_address = gateway.process.stdout.readline().strip().partition("gateway health address=")[2]
        with grpc.insecure_channel(health_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                gateway.stub(channel).ListModels(MODELS, timeout=TIMEOUT_S)

        trusted.write_bytes(strangers.certificate.read_bytes())
        wait_until(lambda: "certificates reloaded" in gateway.log_text())
        with grpc.secure_channel(gateway.address, unknown) as channel:
            assert gateway.stub(channel).ListModels(MODELS, timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            gateway.stub(gateway.channel()).ListModels(MODELS, timeout=TIMEOUT_S)
        assert gateway.stub(gateway._channels[0]).ListModels(MODELS, timeout=TIMEOUT_S)


def test_a_private_socket_asks_for_nothing(
    scheduler: FakeScheduler, model: Path, authority: Authority, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys.toml", ana={})
    flags = ("--api-keys", str(tmp_path / "keys.toml"), "--private-listen", f"unix:{tmp_path}/p")
    with GatewayProcess(model, scheduler.address, tmp_path / "log", *flags) as gateway:
        assert gateway.address == f"unix:{tmp_path}/p"
        assert gateway.stub().ListModels(MODELS, timeout=TIMEOUT_S)


def test_keys_without_tls_are_warned_of_where_they_cross_a_network(
    scheduler: FakeScheduler, model: Path, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys.toml", ana={})
    flags = ("--api-keys", str(tmp_path / "keys.toml"), "--listen", "0.0.0.0:0", "--http", "[::]:0")
    with GatewayProcess(model, scheduler.address, tmp_path / "log", *flags) as gateway:
        assert gateway.stop() == 0
        warnings = re.findall("API keys cross the network unencrypted.*address=(.*)", gateway.log_text())
    assert warnings == ["0.0.0.0:0", "[::]:0"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"certificate": "none.pem"},
            "cannot be used with the key .*: No such file|cannot read .*none.pem: No such file",
        ),
        ({"key": "other.key"}, "key values mismatch; give PEM files that belong together"),
        ({"certificate": "other.key"}, "cannot be used with the key .*; give PEM files that belong together"),
        ({"client_ca": "other.key"}, "the client CA .*other.key cannot be used: .*; give certificates in a PEM file"),
        ({"key": "locked.key"}, "not encrypted"),
    ],
)
def test_files_that_cannot_be_used_are_told(
    scheduler: FakeScheduler, model: Path, tmp_path: Path, files: dict[str, str], problem: str
) -> None:
    authority = Authority(tmp_path)
    authority.issue("other")
    pair = authority.issue("server")
    encrypt = ["openssl", "ec", "-aes128", "-passout", "pass:x", "-in", str(pair.key)]
    subprocess.run([*encrypt, "-out", str(tmp_path / "locked.key")], check=True, capture_output=True)
    paths = {"certificate": pair.certificate, "key": pair.key} | {name: tmp_path / file for name, file in files.items()}
    names = {"certificate": "--tls-cert", "key": "--tls-key", "client_ca": "--tls-client-ca"}
    flags = [part for name, path in paths.items() for part in (names[name], str(path))]
    line = run_to_failure(gateway_command(model, scheduler.address, "--listen", "127.0.0.1:0", *flags))
    assert re.search(problem, line), line


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--tls-cert", "x"], "--tls-cert and --tls-key: give both or neither"),
        (["--tls-client-ca", "x"], "--tls-client-ca: give --tls-cert and --tls-key as well"),
        (["--private-listen", "127.0.0.1:0"], "--private-listen: 127.0.0.1:0 is no unix:/path"),
    ],
)
def test_flags_that_do_not_fit_are_told(scheduler: FakeScheduler, model: Path, flags: list[str], problem: str) -> None:
    command = gateway_command(model, scheduler.address, "--listen", "127.0.0.1:0", *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert problem in done.stderr


def shake_hands(
    served_by: ssl.SSLContext, client_context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """The client's side, connected to a server over memory buffers, once the server has said something to it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    served = served_by.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, served]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    served.write(b"hello")
    assert client.read() == b"hello"
    return client


def name_shown_to(client: ssl.SSLObject) -> str:
    return str(dict(entry[0] for entry in client.getpeercert()["subject"])["commonName"])


def test_a_context_for_other_servers_follows_the_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("first")
    certificates = Certificates(TlsFiles(pair.certificate, pair.key))
    context, trusting = certificates.ssl_context(), authority.client_context()
    assert name_shown_to(shake_hands(context, trusting)) == "first"
    pair.replace(authority.issue("second"))
    certificates.reload_if_changed()
    assert name_shown_to(shake_hands(context, trusting)) == "second"
    pair.key.write_text("broken")
    certificates.reload_if_changed()
    assert name_shown_to(shake_hands(context, trusting)) == "second"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_is_removed_lets_nobody_in_any_more(tmp_path: Path, version: ssl.TLSVersion) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    pair, believed = authority.issue("server"), tmp_path / "believed.pem"
    believed.write_bytes(authority.certificate.read_bytes() + other.certificate.read_bytes())
    certificates = Certificates(TlsFiles(pair.certificate, pair.key, believed))
    context, clients = certificates.ssl_context(), []
    for name, signer in (("mine", authority), ("theirs", other)):
        shown = signer.issue(name)
        clients.append(authority.client_context())
        clients[-1].load_cert_chain(shown.certificate, shown.key)
        clients[-1].maximum_version = version
    sessions = [shake_hands(context, client).session for client in clients]
    believed.write_bytes(authority.certificate.read_bytes())
    certificates.reload_if_changed()
    shake_hands(context, clients[0], sessions[0])
    # Nor by resuming the session that it had.
    for session in (None, sessions[1]):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(context, clients[1], session)
