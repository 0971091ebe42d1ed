"""Does the gateway serve everybody when clients read slowly, never read, or leave?"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pagewire.ipc.requests import Abort, Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, generate_request
from tests.fakes.service_processes import resident_bytes
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

TEXT = "0123456789"
# So many tokens make more bytes than sockets and HTTP/2 windows hold.
NUM_STEPS, TOKENS_PER_STEP = 1_000, 200
NUM_TOKENS = NUM_STEPS * TOKENS_PER_STEP


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeScheduler]:
    address = f"ipc://{tmp_path_factory.mktemp('s')}/requests.sock"
    with FakeScheduler(address, vocab_size=300, max_model_len=1_000_000) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    with GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log") as process:
        process.wait_until_serving()
        yield process


def start(gateway: GatewayProcess, scheduler: FakeScheduler, **stopping: Any) -> tuple[Any, int]:
    """A call on a connection of its own, and its stream id. Nothing of it has been read."""
    stub = gateway.stub(gateway.channel(**{"http2.bdp_probe": 0}))
    request = generate_request(stopping=stopping)
    call = stub.Generate(request, timeout=3 * TIMEOUT_S)
    return call, scheduler.take(Submit).stream_id


def check_gateway_serves(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    """One whole stream, token by token."""
    call, stream_id = start(gateway, scheduler)
    assert next(call).HasField("accepted")
    for letter in "still here":
        scheduler.send_stream(stream_id, byte_level_ids(letter.encode()))
        assert next(call).delta.text == letter
    scheduler.send_tokens([], stop_at_length(stream_id))
    assert next(call).HasField("finished")


def test_tokens_pool_for_a_reader_that_is_late(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    call, stream_id = start(gateway, scheduler)
    token_ids = byte_level_ids(TEXT.encode()) * (NUM_TOKENS // len(TEXT))
    for start_at in range(0, NUM_TOKENS, TOKENS_PER_STEP):
        scheduler.send_tokens((stream_id, token_id) for token_id in token_ids[start_at : start_at + TOKENS_PER_STEP])
    scheduler.send_tokens([], stop_at_length(stream_id))
    # All steps have passed through the gateway before the first event is read.
    check_gateway_serves(gateway, scheduler)
    events = list(call)
    deltas = [event.delta for event in events[1:-1]]
    assert [token_id for delta in deltas for token_id in delta.token_ids] == token_ids
    assert "".join(delta.text for delta in deltas) == TEXT * (NUM_TOKENS // len(TEXT))
    assert events[-1].finished.usage.num_output_tokens == NUM_TOKENS
    sizes = [len(delta.token_ids) for delta in deltas]
    # What found its way before the reader was late came as it was made; what pooled comes in messages of 4,096.
    assert sizes.count(4096) >= 10
    assert max(sizes) == 4096


def test_client_that_never_reads_delays_nobody(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    silent = [start(gateway, scheduler) for _ in range(4)]
    token_ids = byte_level_ids(TEXT.encode()) * 200
    for token_id in token_ids:
        scheduler.send_tokens([(stream_id, token_id) for _, stream_id in silent])
    check_gateway_serves(gateway, scheduler)
    for call, _ in silent:
        call.cancel()
    aborted: set[int] = set()
    while len(aborted) < len(silent):
        aborted.update(scheduler.take(Abort).stream_ids)
    assert aborted == {stream_id for _, stream_id in silent}


def test_stop_text_ends_a_stream_that_nobody_reads(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    call, stream_id = start(gateway, scheduler, stop=["STOP"])
    scheduler.send_stream(stream_id, byte_level_ids(TEXT.encode()) * 500 + byte_level_ids(b"xSTOPx"))
    assert scheduler.take(Abort) == Abort((stream_id,), complete_ids=(stream_id,))
    events = list(call)
    assert "".join(event.delta.text for event in events) == TEXT * 500 + "x"
    assert events[-1].finished.stop == "STOP"


@pytest.mark.parametrize("num_events_read", [0, 1, 2])
def test_client_that_leaves_is_aborted_once(
    gateway: GatewayProcess, scheduler: FakeScheduler, num_events_read: int
) -> None:
    call, stream_id = start(gateway, scheduler)
    scheduler.send_stream(stream_id, byte_level_ids(b"x"))
    for _ in range(num_events_read):
        next(call)
    call.cancel()
    assert scheduler.take(Abort) == Abort((stream_id,))
    # What was on its way does no harm.
    scheduler.send_stream(stream_id, byte_level_ids(b"yz"), stop_at_length(stream_id))
    check_gateway_serves(gateway, scheduler)
    assert scheduler.take_all() == []


def test_client_whose_connection_breaks_is_aborted(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    channel = gateway.channel()
    request = generate_request()
    calls = [gateway.stub(channel).Generate(request, timeout=TIMEOUT_S) for _ in range(8)]
    stream_ids = {scheduler.take(Submit).stream_id for _ in calls}
    channel.close()
    aborted: list[int] = []
    while len(aborted) < len(calls):
        aborted += scheduler.take(Abort).stream_ids
    assert sorted(aborted) == sorted(stream_ids)


def test_client_that_is_killed_is_aborted(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    script = (
        "import sys\nfrom tests.fakes.gateway_process import generate_request\n"
        "import grpc\nfrom pagewire.v1 import inference_pb2_grpc\n"
        f"stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel('{gateway.address}'))\n"
        "for event in stub.Generate(generate_request()):\n    print(event.WhichOneof('event'), flush=True)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_stream(stream_id, byte_level_ids(TEXT.encode()) * 50)
    assert client.stdout is not None
    assert [client.stdout.readline(), client.stdout.readline()] == ["accepted\n", "delta\n"]
    client.kill()
    scheduler.send_stream(stream_id, byte_level_ids(TEXT.encode()) * 50)
    assert scheduler.take(Abort) == Abort((stream_id,))
    client.communicate()
    check_gateway_serves(gateway, scheduler)
    assert "ERROR" not in gateway.log_text()


def test_client_that_leaves_after_the_end_is_not_aborted(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    call, stream_id = start(gateway, scheduler)
    scheduler.send_stream(stream_id, byte_level_ids(b"x"), stop_at_length(stream_id))
    list(call)
    call.cancel()
    check_gateway_serves(gateway, scheduler)
    assert scheduler.take_all() == []


def test_every_ended_call_leaves_one_line_in_the_log(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    check_gateway_serves(gateway, scheduler)
    call, _ = start(gateway, scheduler)
    call.cancel()
    scheduler.take(Abort)
    finished = "outcome=FINISH_REASON_LENGTH num_prompt_tokens=1 num_output_tokens=10"
    cancelled = "outcome=cancelled num_prompt_tokens=1 num_output_tokens=0"
    # The last line may be written a moment after the client knows.
    while not (finished in (text := gateway.log_text()) and cancelled in text):
        pass


def test_gateway_memory_does_not_grow_with_a_client_that_never_reads(
    gateway: GatewayProcess, scheduler: FakeScheduler
) -> None:
    check_gateway_serves(gateway, scheduler)
    before = resident_bytes(gateway.process.pid)
    calls = [start(gateway, scheduler) for _ in range(8)]
    for token_id in byte_level_ids(TEXT.encode()) * 800:
        scheduler.send_tokens([(stream_id, token_id) for _, stream_id in calls])
    check_gateway_serves(gateway, scheduler)
    num_tokens = len(calls) * len(TEXT) * 800
    # Four bytes a token, and what sockets and HTTP/2 buffer for each connection.
    assert resident_bytes(gateway.process.pid) - before < 4 * num_tokens + len(calls) * 2_000_000
    for call, _ in calls:
        call.cancel()
