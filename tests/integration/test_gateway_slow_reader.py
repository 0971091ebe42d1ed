"""What does a caller who does not read cost a gateway, and does it get everything once it reads?"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pagewire.ipc.requests import Abort, StepTokens, Submit, logprob_record_bytes
from pagewire.v1 import generate_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import GatewayProcess, generate_request
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

NUM_TOKENS, NUM_AT_ONCE = 60_000, 500
TOKEN_ID = byte_level_ids(b"x")[0]
# One message that is being written, as objects and as bytes, and what the allocator keeps.
SPARE_BYTES = 24 << 20
NUM_LOGPROBS = 20
NUM_FIRST_LEAVERS, NUM_LEAVERS = 4, 16


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[FakeScheduler]:
    with FakeScheduler(f"ipc://{tmp_path}/requests.sock", vocab_size=300, max_model_len=1 << 20) as fake:
        yield fake


@pytest.fixture
def gateway(scheduler: FakeScheduler, tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(write_tiny_model(tmp_path / "model"), scheduler.address, tmp_path / "log") as process:
        process.wait_until_serving()
        yield process


def unshared_bytes(process: psutil.Process) -> int:
    """Memory of the process alone: pages of files come and go with what else the machine does."""
    num_bytes: int = process.memory_full_info().uss
    return num_bytes


def send_tokens(scheduler: FakeScheduler, submit: Submit, num_tokens: int) -> None:
    """Steps of this stream, many in one message, with log probabilities if they are wanted."""
    num_logprobs = submit.sampling.num_logprobs
    record = b"" if num_logprobs is None else bytes(logprob_record_bytes(num_logprobs))
    for _ in range(0, num_tokens, NUM_AT_ONCE):
        stream_ids = submit.stream_id.to_bytes(4, "little") * NUM_AT_ONCE
        token_ids = TOKEN_ID.to_bytes(4, "little") * NUM_AT_ONCE
        logprobs = {submit.stream_id: record * NUM_AT_ONCE} if record else {}
        scheduler.send(StepTokens(stream_ids, token_ids, [], logprobs=logprobs))


def run_short_stream(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    """A stream of one token: when it has ended, the gateway has taken all that was sent before."""
    call = gateway.stub().Generate(generate_request())
    submit = scheduler.take(Submit)
    scheduler.send_stream(submit.stream_id, [TOKEN_ID], stop_at_length(submit.stream_id))
    assert len(list(call)) == 3


@pytest.mark.parametrize(
    ("num_logprobs", "stop", "bytes_per_token"), [(None, (), 4), (20, (), 4 + 168), (20, ("never",), 4 + 168 + 1)]
)
def test_a_caller_who_does_not_read_costs_what_its_tokens_take(
    gateway: GatewayProcess,
    scheduler: FakeScheduler,
    num_logprobs: int | None,
    stop: tuple[str, ...],
    bytes_per_token: int,
) -> None:
    process = psutil.Process(gateway.process.pid)
    request = generate_request(
        output=generate_pb2.OutputOptions(logprobs=num_logprobs),
        stopping=generate_pb2.StopConditions(max_tokens=NUM_TOKENS, stop=stop),
    )
    run_short_stream(gateway, scheduler)
    before = unshared_bytes(process)
    call = gateway.stub().Generate(request)
    submit = scheduler.take(Submit)
    send_tokens(scheduler, submit, NUM_TOKENS)
    scheduler.send_tokens([], stop_at_length(submit.stream_id))
    run_short_stream(gateway, scheduler)
    grown = unshared_bytes(process) - before
    print(f"\nnum_logprobs={num_logprobs} stop={stop}: {grown / NUM_TOKENS:.0f} bytes a token")
    assert grown <= bytes_per_token * NUM_TOKENS + SPARE_BYTES
    _, *events, last = call
    assert sum(len(event.delta.token_ids) for event in events) == NUM_TOKENS
    assert "".join(event.delta.text for event in events) == "x" * NUM_TOKENS
    if num_logprobs is not None:
        assert sum(len(event.delta.logprobs) for event in events) == NUM_TOKENS
    assert last.finished.usage.num_output_tokens == NUM_TOKENS


def test_callers_who_leave_without_reading_give_their_memory_back(
    gateway: GatewayProcess, scheduler: FakeScheduler
) -> None:
    process = psutil.Process(gateway.process.pid)
    request = generate_request(output=generate_pb2.OutputOptions(logprobs=NUM_LOGPROBS))
    kept_bytes = []
    for _ in range(NUM_FIRST_LEAVERS + NUM_LEAVERS):
        # gRPC reads ahead for a caller, up to a window that is left small here: the rest is what the gateway holds.
        channel = gateway.channel(**{"http2.bdp_probe": 0})
        call = gateway.stub(channel).Generate(request)
        submit = scheduler.take(Submit)
        send_tokens(scheduler, submit, NUM_TOKENS)
        run_short_stream(gateway, scheduler)
        call.cancel()
        assert scheduler.take(Abort).stream_ids == (submit.stream_id,)
        kept_bytes.append(unshared_bytes(process))
    # The allocator keeps what a few streams have taken, now more and now less of it, and gives it to the next ones.
    grown = kept_bytes[-1] - max(kept_bytes[:NUM_FIRST_LEAVERS])
    bytes_per_leaver = NUM_TOKENS * logprob_record_bytes(NUM_LOGPROBS)
    print(f"\n{grown / NUM_LEAVERS / bytes_per_leaver:.2f} of what a caller did not read is kept")
    assert grown <= NUM_LEAVERS * bytes_per_leaver // 4
