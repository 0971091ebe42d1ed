"""Is every address that a gateway cannot listen on refused, in one line that says what to do?"""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.listen import check_addresses
from tests.fakes.free_port import free_port


@pytest.fixture
def folder():
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize(
    "address",
    ["", "50051", "host", "host:", "host:x", ":1", "host:99999", "127.0.0.1:²", "::1:50051", "[::1:5", "unix:"],
)
def test_malformed_addresses_are_refused(address):
    with pytest.raises(ServiceError, match="is no address to listen on: give"):
        check_addresses([address])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"{'x' * 70}.example:0", r"cannot listen on x+.example:0: .*; check the host"),
        ("no-such-host.invalid:0", r"cannot listen on no-such-host.invalid:0: .*; check the host"),
        ("192.0.2.1:0", r"Cannot assign requested address; give an address of this machine"),
    ],
)
def test_hosts_that_are_not_this_machine_are_refused(address, message):
    with pytest.raises(ServiceError, match=message):
        check_addresses([address])


def test_a_free_address_passes_and_is_left_free(folder):
    for _ in range(2):
        check_addresses(["127.0.0.1:0", f"unix:{folder}/x.sock"], num_gateways=3)
    assert list(folder.iterdir()) == []


def test_a_taken_port_is_refused_for_whichever_gateway(folder):
    with socket.socket() as taken:
        port = free_port(2) + 1
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ServiceError, match="Address already in use; stop the process"):
            check_addresses([f"127.0.0.1:{port}"])
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            check_addresses([f"127.0.0.1:{port - 1}"], num_gateways=2)


def test_ports_past_the_last_are_refused():
    with pytest.raises(ServiceError, match=r"2 gateways from 127.0.0.1:65535 on need ports up to 65536"):
        check_addresses(["127.0.0.1:65535"], num_gateways=2)


def test_a_shared_port_must_be_named_and_is_tried_once(folder):
    port = free_port()
    check_addresses([f"127.0.0.1:{port}", f"unix:{folder}/a"], num_gateways=9, shares_port=True)
    with pytest.raises(ServiceError, match=r"127.0.0.1:0 cannot be shared: give the port"):
        check_addresses(["127.0.0.1:0"], num_gateways=2, shares_port=True)
    with pytest.raises(ServiceError, match="would be listened on twice"):
        check_addresses([f"127.0.0.1:{port}"], 2, [f"127.0.0.1:{port - 1}"], shares_port=True)


def test_gateways_on_one_address_are_refused(folder):
    with pytest.raises(ServiceError, match=r"unix:.*/a.1 would be listened on twice: give"):
        check_addresses([f"unix:{folder}/a", f"unix:{folder}/a.1"], num_gateways=2)


def test_unix_paths_that_cannot_be_bound_are_refused(folder):
    (folder / "file").touch()
    for name, message in {
        "file": "no socket",
        ".": "no socket",
        "none/x": "does not exist; choose another path",
        "file/x": "Not a directory",
        "x" * 120: "longer than 107 bytes",
    }.items():
        with pytest.raises(ServiceError, match=message):
            check_addresses([f"unix:{folder}/{name}"])


def test_a_socket_in_use_is_refused_and_a_dead_one_is_not(folder):
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(folder / "x"))
        taken.listen()
        with pytest.raises(ServiceError, match="another server uses it"):
            check_addresses([f"unix:{folder}/x"])
    check_addresses([f"unix:{folder}/x"])
    assert os.listdir(folder) == ["x"]
