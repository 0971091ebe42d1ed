"""Does HTTP serve everybody when clients read slowly, never read, write slowly, come in crowds, or leave?"""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagewire.ipc.requests import Abort, Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.openai_gateway import RawStream, http_gateway, post
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import resident_bytes
from tests.fakes.tiny_model import byte_level_ids

COMPLETIONS = "/v1/completions"
BODY = {"prompt": "a", "stream": True, "max_tokens": 65_000}
TEXT = "0123456789"
# So many tokens make more bytes than sockets hold, were there an event for each.
NUM_STEPS, TOKENS_PER_STEP = 1_000, 200
NUM_TOKENS = NUM_STEPS * TOKENS_PER_STEP
MAX_CONNECTIONS = 64


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeScheduler]:
    address = f"ipc://{tmp_path_factory.mktemp('s')}/requests.sock"
    with FakeScheduler(address, vocab_size=300, max_model_len=1_000_000) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, int]]:
    flags = ("--max-http-connections", str(MAX_CONNECTIONS))
    with http_gateway(scheduler, tmp_path_factory.mktemp("clients"), *flags) as (process, port):
        yield process, port
        assert "ERROR" not in process.log_text()


def start(port: int, scheduler: FakeScheduler) -> tuple[RawStream, int]:
    """A stream of which only the head was read, and its stream id."""
    stream = RawStream(port, COMPLETIONS, BODY)
    return stream, scheduler.take(Submit).stream_id


def check_serves(port: int, scheduler: FakeScheduler) -> None:
    """One whole stream, token by token."""
    stream, stream_id = start(port, scheduler)
    for letter in "still here":
        scheduler.send_stream(stream_id, byte_level_ids(letter.encode()))
        assert stream.read(1).data[-1]["choices"][0]["text"] == letter
    scheduler.send_tokens([], stop_at_length(stream_id))
    assert stream.read().is_done


def take_aborts(scheduler: FakeScheduler, count: int) -> set[int]:
    aborted: set[int] = set()
    while len(aborted) < count:
        aborted.update(scheduler.take(Abort).stream_ids)
    return aborted


def test_tokens_pool_for_a_reader_that_is_late(gateway: tuple[GatewayProcess, int], scheduler: FakeScheduler) -> None:
    stream, stream_id = start(gateway[1], scheduler)
    token_ids = byte_level_ids(TEXT.encode()) * (NUM_TOKENS // len(TEXT))
    for start_at in range(0, NUM_TOKENS, TOKENS_PER_STEP):
        scheduler.send_tokens((stream_id, token_id) for token_id in token_ids[start_at : start_at + TOKENS_PER_STEP])
    scheduler.send_tokens([], stop_at_length(stream_id))
    # All steps have passed through the gateway before the first event is read.
    check_serves(gateway[1], scheduler)
    events = stream.read()
    assert events.text == TEXT * (NUM_TOKENS // len(TEXT))
    assert events.is_done
    assert max(len(chunk["choices"][0]["text"]) for chunk in events.data) == 4096


def test_memory_does_not_grow_with_readers_that_never_read(
    gateway: tuple[GatewayProcess, int], scheduler: FakeScheduler
) -> None:
    process, port = gateway
    check_serves(port, scheduler)
    before = resident_bytes(process.process.pid)
    streams = [start(port, scheduler) for _ in range(8)]
    for token_id in byte_level_ids(TEXT.encode()) * 800:
        scheduler.send_tokens([(stream_id, token_id) for _, stream_id in streams])
    check_serves(port, scheduler)
    num_tokens = len(streams) * len(TEXT) * 800
    assert resident_bytes(process.process.pid) - before < 4 * num_tokens + len(streams) * 2_000_000
    for stream, _ in streams:
        stream.response.close()
        stream.connection.close()
    assert take_aborts(scheduler, len(streams)) == {stream_id for _, stream_id in streams}


def test_a_crowd_of_slow_writers_keeps_nobody_out_for_long(
    gateway: tuple[GatewayProcess, int], scheduler: FakeScheduler
) -> None:
    """They take all connections there are: more are refused, until those are cut."""
    crowd = [socket.create_connection(("127.0.0.1", gateway[1]), timeout=PATIENCE_S) for _ in range(MAX_CONNECTIONS)]
    for connection in crowd:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost")
    refused = 0
    while not (answer := ask_for_models(gateway[1])).startswith(b"HTTP/1.1 200 "):
        assert answer.startswith(b"HTTP/1.1 503 ")
        refused += 1
        if refused == 3:
            crowd[0].close()
    assert refused >= 3
    for connection in crowd:
        connection.close()


def ask_for_models(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            # Refused before it was asked, and the refusal was lost with the connection.
            answer = b"HTTP/1.1 503 "
        return answer


def test_connections_that_come_and_go_leave_nothing(
    gateway: tuple[GatewayProcess, int], scheduler: FakeScheduler
) -> None:
    process, port = gateway
    check_serves(port, scheduler)
    num_files = count_files(process.process.pid)
    body = json.dumps(BODY).encode()
    heads: list[Any] = [b"", b"GET /v1", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"]
    heads.append(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    heads[3] += b"Content-Length: %d\r\n\r\n" % len(body) + body
    for number in range(1000):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(heads[number % len(heads)])
    check_ends_in_balance(port, scheduler)
    while count_files(process.process.pid) > num_files:
        pass


def count_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def check_ends_in_balance(port: int, scheduler: FakeScheduler) -> None:
    """Every request that reached the scheduler is taken back, once."""
    stream, last_id = None, None
    while stream is None:
        connection = ask_for_models(port)
        if connection.startswith(b"HTTP/1.1 200 "):
            stream = RawStream(port, COMPLETIONS, {**BODY, "cache_salt": "last"})
    submitted: set[int] = set()
    aborted: set[int] = set()
    while last_id is None or submitted - {last_id} != aborted:
        message = scheduler._arrived.get(timeout=PATIENCE_S)
        if isinstance(message, Submit):
            submitted.add(message.stream_id)
            last_id = message.stream_id if message.cache_salt == "last" else last_id
        else:
            assert isinstance(message, Abort)
            assert not aborted & set(message.stream_ids)
            aborted |= set(message.stream_ids)
    scheduler.send_stream(last_id, byte_level_ids(b"x"), stop_at_length(last_id))
    assert stream.read().is_done


@pytest.fixture
def own_scheduler(tmp_path: Path) -> Iterator[FakeScheduler]:
    with FakeScheduler(f"ipc://{tmp_path}/requests.sock", vocab_size=300, max_model_len=1_000_000) as fake:
        yield fake


def test_a_drained_gateway_ends_streams_so_that_they_can_be_resumed(
    own_scheduler: FakeScheduler, tmp_path: Path
) -> None:
    scheduler = own_scheduler
    with (
        http_gateway(scheduler, tmp_path / "a", "--drain-timeout", "0.2") as (process, port),
        http_gateway(scheduler, tmp_path / "b") as (_, other_port),
    ):
        stream, stream_id = start(port, scheduler)
        scheduler.send_stream(stream_id, byte_level_ids(b"one "))
        while stream.events.text != "one ":
            stream.read(1)
        last_id = stream.events.ids[-1]
        process.process.terminate()
        end = stream.read()
        assert end.data[-1]["error"]["code"] == "gateway_draining"
        assert not end.is_done
        assert process.process.wait(PATIENCE_S) == 0
        rest = RawStream(other_port, COMPLETIONS, BODY, last_id)
        # The one that is gone may have had its last words first.
        again = scheduler.take_next(Submit)
        scheduler.send_stream(again.stream_id, byte_level_ids(b"one two"), stop_at_length(again.stream_id))
        assert rest.read().text == "two"


def test_a_draining_gateway_refuses_requests_and_says_so(own_scheduler: FakeScheduler, tmp_path: Path) -> None:
    with http_gateway(own_scheduler, tmp_path, "--drain-timeout", str(PATIENCE_S)) as (process, port):
        stream, stream_id = start(port, own_scheduler)
        process.process.terminate()
        while post(port, "/readyz", {}, method="GET")[0] != 503:
            pass
        status, answer = post(port, COMPLETIONS, {"prompt": "a"})
        assert (status, answer["error"]["code"]) == (503, "gateway_draining")
        own_scheduler.send_stream(stream_id, byte_level_ids(b"x"), stop_at_length(stream_id))
        assert stream.read().is_done
        assert process.process.wait(PATIENCE_S) == 0


def test_a_reader_that_never_reads_does_not_hold_up_the_end(own_scheduler: FakeScheduler, tmp_path: Path) -> None:
    with http_gateway(own_scheduler, tmp_path, "--drain-timeout", "0.2") as (process, port):
        _, stream_id = reader = start(port, own_scheduler)
        for _ in range(NUM_STEPS):
            own_scheduler.send_tokens((stream_id, token_id) for token_id in byte_level_ids(TEXT.encode()) * 20)
        check_serves(port, own_scheduler)
        process.process.terminate()
        assert process.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in process.log_text()
        reader[0].connection.close()
