"""Which engines a gateway finds: at plain addresses, and at those of DNS names as they change, fail and come back."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from scheduler_service.gateway.engines.discovery import Discovery, check_addresses, look_up
from scheduler_service.gateway.exceptions import StartError
from tests.fakes.patience import PATIENCE_S

NAME = "dns+tcp://engines.llm.svc:5555"
PLAIN = "tcp://10.9.9.9:5555"

Parameters = ParamSpec("Parameters")


def in_event_loop(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    @wraps(test)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        asyncio.run(test(*arguments, **options))

    return run


class FakeDns:
    """Answers each look-up with what `hosts` says then, and counts them."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] | OSError = hosts
        self.asked: list[tuple[str, int]] = []
        self._turn = asyncio.Event()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        self._turn.set()
        await asyncio.sleep(0)
        if isinstance(self.hosts, OSError):
            raise self.hosts
        return self.hosts

    async def wait_for_look_ups(self, count: int) -> None:
        """Until so many more have begun, of which the last but one has ended."""
        enough = len(self.asked) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.asked) < enough:
                self._turn.clear()
                await self._turn.wait()


class Listener:
    """What Discovery tells."""

    def __init__(self) -> None:
        self.told: list[frozenset[str]] = []
        self._news = asyncio.Event()

    def on_change(self, addresses: frozenset[str]) -> None:
        self.told.append(addresses)
        self._news.set()

    async def wait_for(self, *addresses: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.told or self.told[-1] != frozenset(addresses):
                self._news.clear()
                await self._news.wait()


@in_event_loop
async def test_plain_addresses_are_told_at_once_and_nobody_is_asked() -> None:
    dns, listener = FakeDns(), Listener()
    discovery = Discovery([PLAIN, "ipc:///run/a", PLAIN], listener.on_change, dns.resolve)
    discovery.start()
    assert listener.told == [frozenset({PLAIN, "ipc:///run/a"})]
    discovery.close()
    assert dns.asked == []


@in_event_loop
async def test_addresses_of_a_name_come_and_go_beside_plain_ones() -> None:
    dns, listener = FakeDns("10.0.0.7", "fd00::7"), Listener()
    discovery = Discovery([PLAIN, NAME], listener.on_change, dns.resolve, period_s=0.001)
    discovery.start()
    await listener.wait_for(PLAIN, "tcp://10.0.0.7:5555", "tcp://[fd00::7]:5555")
    dns.hosts = ["10.0.0.8"]
    await listener.wait_for(PLAIN, "tcp://10.0.0.8:5555")
    discovery.close()
    assert dns.asked[0] == ("engines.llm.svc", 5555)
    # The same answer is told once.
    assert len(listener.told) == 3


@in_event_loop
async def test_look_ups_that_fail_or_find_nothing_change_nothing_and_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    dns, listener = FakeDns("10.0.0.7"), Listener()
    discovery = Discovery([NAME], listener.on_change, dns.resolve, period_s=0.001)
    discovery.start()
    await listener.wait_for("tcp://10.0.0.7:5555")
    for hosts in (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), ()):
        dns.hosts = hosts
        await dns.wait_for_look_ups(3)
    assert len(listener.told) == 1
    dns.hosts = ["10.0.0.8"]
    await listener.wait_for("tcp://10.0.0.8:5555")
    discovery.close()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("engines ")]
    problem = "'Temporary failure in name resolution' num_known=1"
    assert lines == [
        "engines num=1 addresses=tcp://10.0.0.7:5555",
        f"engines not found address={NAME} problem={problem}",
        f"engines found again address={NAME}",
        "engines num=1 addresses=tcp://10.0.0.8:5555",
    ]


@in_event_loop
async def test_engines_that_cannot_be_connected_are_told_again(caplog: pytest.LogCaptureFixture) -> None:
    dns, listener, problems = FakeDns("10.0.0.7"), Listener(), [StartError("no socket is left")] * 2

    def connect(addresses: frozenset[str]) -> None:
        if problems:
            raise problems.pop()
        listener.on_change(addresses)

    discovery = Discovery([NAME], connect, dns.resolve, period_s=0.001)
    discovery.start()
    await listener.wait_for("tcp://10.0.0.7:5555")
    discovery.close()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [f"engines not connected address={NAME} problem=no socket is left"] * 2


@in_event_loop
async def test_one_looks_again_when_asked_and_not_before() -> None:
    dns, listener = FakeDns("10.0.0.7"), Listener()
    discovery = Discovery([NAME], listener.on_change, dns.resolve, period_s=10 * PATIENCE_S)
    discovery.start()
    await listener.wait_for("tcp://10.0.0.7:5555")
    dns.hosts = ["10.0.0.8"]
    discovery.look_again()
    await listener.wait_for("tcp://10.0.0.8:5555")
    discovery.close()
    assert len(dns.asked) == 2


@in_event_loop
async def test_a_name_without_addresses_yet_is_not_told_and_is_asked_again() -> None:
    dns, listener = FakeDns(), Listener()
    discovery = Discovery([NAME], listener.on_change, dns.resolve, period_s=10 * PATIENCE_S)
    discovery.start()
    await dns.wait_for_look_ups(2)
    assert listener.told == []
    dns.hosts = ["10.0.0.7"]
    await listener.wait_for("tcp://10.0.0.7:5555")
    discovery.close()


@in_event_loop
async def test_one_name_that_fails_does_not_hide_another() -> None:
    async def resolve(host: str, _port: int) -> Sequence[str]:
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ["10.0.0.7"]

    listener = Listener()
    discovery = Discovery(["dns+tcp://gone:1", "dns+tcp://there:2"], listener.on_change, resolve)
    discovery.start()
    await listener.wait_for("tcp://10.0.0.7:2")
    discovery.close()


@in_event_loop
async def test_the_system_knows_localhost() -> None:
    listener = Listener()
    discovery = Discovery(["dns+tcp://localhost:5555"], listener.on_change)
    discovery.start()
    await listener.wait_for("tcp://127.0.0.1:5555")
    discovery.close()


@in_event_loop
async def test_the_system_knows_literal_addresses_and_says_what_it_does_not_know() -> None:
    assert await look_up("10.0.0.7", 5555) == ["10.0.0.7"]
    assert await look_up("::1", 5555) == ["::1"]
    with pytest.raises(OSError, match=r"\S"):
        await look_up("nothing.invalid", 5555)


def test_a_resolver_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers, answered = threading.Event(), threading.Event(), threading.Event()

    def wait(*_arguments: object, **_options: object) -> list[Any]:
        asked.set()
        answers.wait(PATIENCE_S)
        answered.set()
        return []

    async def run() -> None:
        discovery = Discovery([NAME], lambda _: None)
        discovery.start()
        await asyncio.to_thread(asked.wait, PATIENCE_S)
        discovery.close()

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    asyncio.run(run())
    assert not answered.is_set()
    answers.set()
    assert answered.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "address",
    [
        "dns+tcp://engines",
        "dns+tcp://engines:",
        "dns+tcp://engines:port",
        "dns+tcp://engines:0",
        "dns+tcp://engines:65536",
        "dns+tcp://:5555",
        "dns+tcp://a..b:5555",
        "dns+tcp://a b:5555",
        f"dns+tcp://{'a' * 64}:5555",
        "dns+tcp://fd00::zz:5555",
    ],
)
def test_what_is_no_name_and_port_is_refused(address: str) -> None:
    with pytest.raises(StartError) as refused:
        Discovery([address], lambda _: None)
    assert str(refused.value) == (
        f"--scheduler-address {address}: is not dns+tcp://NAME:PORT; give a DNS name and a port from 1 to 65535"
    )


@pytest.mark.parametrize("address", ["engines:5555", "dns://engines:5555", "http://engines", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StartError, match=r"is no address of a scheduler; give one such as"):
        Discovery([address], lambda _: None)


def test_engines_of_other_machines_need_keys(tmp_path: Path) -> None:
    check_addresses([PLAIN, NAME], tmp_path)
    check_addresses(["ipc:///run/a", "dns+tcp://localhost:5555", "dns+tcp://[::1]:5555"], None)
    for address in (PLAIN, NAME):
        with pytest.raises(StartError, match="give --curve-keys DIR"):
            check_addresses([address], None)
