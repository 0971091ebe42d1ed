"""The scheduler as a real process with real sockets, a fake worker and a bare gateway socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pagewire.ipc.codec import ANY, new_incarnation
from pagewire.ipc.requests import Abort, EngineState, Goodbye, Hello, Locate, RejectReason
from pagewire.ipc.steps import LeftSequence
from tests.fakes.bare_gateway import make_submit
from tests.fakes.bare_scheduler import int_bytes
from tests.fakes.patience import PATIENCE_S
from tests.fakes.scheduler_process import SchedulerProcess, wait_for
from tests.fakes.step_executor import complete


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SchedulerProcess]:
    running = SchedulerProcess(tmp_path, "--orphan-grace-s", str(PATIENCE_S))
    yield running
    running.close()


def test_streams_of_two_gateways_get_their_own_tokens(service: SchedulerProcess) -> None:
    service.worker()
    first, second = service.gateway(), service.gateway()
    first.wait_ready()
    second.wait_ready()
    first.send(make_submit(1, [1, 2, 3], max_tokens=10))
    second.send(make_submit(1, [4, 5, 6, 7, 8], max_tokens=12))
    first.wait(lambda: 1 in first.ended)
    second.wait(lambda: 1 in second.ended)
    assert first.tokens[1] == complete([1, 2, 3], 10)
    assert second.tokens[1] == complete([4, 5, 6, 7, 8], 12)


def test_request_before_the_workers_are_ready_is_unavailable(service: SchedulerProcess) -> None:
    gateway = service.gateway()
    gateway.send(make_submit(1, [1]))
    gateway.wait(lambda: 1 in gateway.rejected)
    assert gateway.rejected[1].reason is RejectReason.UNAVAILABLE


@pytest.mark.parametrize(
    ("prompt", "changes", "field", "words"),
    [
        ([], {}, "token_ids", "empty"),
        ([1] * 200, {}, "token_ids", "max_model_len allows 200"),
        ([1] * 150, {"max_tokens": 60}, "max_tokens", "max_model_len allows 200"),
        ([50], {}, "token_ids", "outside 0 to 49"),
        ([-1], {}, "token_ids", "outside 0 to 49"),
        ([1], {"max_tokens": 0}, "max_tokens", "at least 1"),
        ([1, 2], {"token_ids": b"abc"}, "token_ids", "int32"),
        ([1, 2], {"num_prompt_tokens": 3}, "num_prompt_tokens", "3 of 2"),
    ],
)
def test_what_can_never_run_is_refused(
    service: SchedulerProcess, prompt: list[int], changes: dict[str, object], field: str, words: str
) -> None:
    service.worker()
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, prompt, **changes))
    gateway.wait(lambda: 1 in gateway.rejected)
    assert gateway.rejected[1].reason is RejectReason.INVALID
    assert gateway.rejected[1].field == field
    assert words in gateway.rejected[1].message


def test_request_larger_than_the_kv_cache_is_refused_naming_it(service: SchedulerProcess) -> None:
    service.worker(num_blocks=5)
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, [1] * 10, max_tokens=12))
    gateway.send(make_submit(2, [1] * 10, max_tokens=11))
    gateway.wait(lambda: 1 in gateway.rejected and 2 in gateway.ended)
    assert "the KV cache allows 21" in gateway.rejected[1].message


def test_garbage_on_both_sockets_is_dropped_and_service_goes_on(service: SchedulerProcess) -> None:
    service.worker()
    gateway = service.gateway()
    gateway.wait_ready()
    for address in (service.request_address, service.worker_address):
        socket = gateway.context.socket(zmq.DEALER)
        socket.connect(address)
        for garbage in (b"", b"x", b"PGW1", os.urandom(400), b"PGW1" + bytes(16) + b"\x93\x01\x02", b"\xc1" * 50):
            socket.send(garbage)
        socket.send_multipart([b"a", b"b", b"c"])
        header = b"PGW1" + new_incarnation() + ANY
        socket.send(header + os.urandom(64))
        socket.send(header + b"\x91" * 2000)
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=10))
    gateway.wait(lambda: 1 in gateway.ended)
    assert gateway.tokens[1] == complete([1, 2, 3], 10)


def test_message_for_another_incarnation_is_dropped(service: SchedulerProcess) -> None:
    service.worker()
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, [1, 2, 3]), recipient=new_incarnation())
    gateway.send(make_submit(2, [1, 2, 3]))
    gateway.wait(lambda: 2 in gateway.ended)
    assert 1 not in gateway.tokens


def test_abort_frees_blocks_within_two_steps(service: SchedulerProcess) -> None:
    worker = service.worker()
    worker.hold(after=5)
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=190))
    gateway.wait(lambda: len(gateway.tokens[1]) == 5)
    gateway.send(Abort((1,)))
    gateway.send(make_submit(2, [1], max_tokens=0))
    gateway.wait(lambda: 2 in gateway.rejected)  # the abort was handled before this
    steps_before = worker.num_steps
    worker.go_on()
    gateway.status = None
    gateway.wait(lambda: gateway.status is not None and gateway.status.load.num_running == 0)
    assert gateway.status is not None
    assert gateway.status.load.num_free_blocks == 64
    assert worker.num_steps - steps_before <= 2
    assert 1 not in gateway.ended


def test_sequences_of_a_gateway_that_says_goodbye_end_without_a_warning(service: SchedulerProcess) -> None:
    worker = service.worker()
    worker.hold(after=5)
    leaving, other = service.gateway(), service.gateway()
    leaving.wait_ready()
    other.wait_ready()
    leaving.send(make_submit(1, [1, 2, 3], max_tokens=190))
    other.wait(lambda: other.status is not None and other.status.load.num_free_blocks < 64)
    leaving.send(Goodbye())
    worker.go_on()
    other.wait(lambda: other.status is not None and other.status.load.num_free_blocks == 64)
    leaving.close()
    for _ in range(2):
        other.status = None
        other.wait(lambda: other.status is not None)
    service.process.terminate()
    assert service.process.stderr is not None
    log = service.process.stderr.read()
    assert f"gateway left incarnation={leaving.incarnation.hex()}" in log
    assert "WARNING" not in log


def test_sequences_of_a_gateway_that_is_gone_end_with_the_grace(tmp_path: Path) -> None:
    service = SchedulerProcess(tmp_path, "--orphan-grace-s", "0.5")
    try:
        service.worker()
        gone, other = service.gateway(), service.gateway()
        gone.wait_ready()
        other.wait_ready()
        for stream in range(5):
            gone.send(make_submit(stream, [1, 2, 3], max_tokens=190))
        gone.wait(lambda: len(gone.tokens[1]) > 1)
        gone.close()
        other.wait(lambda: other.status is not None and other.status.load.num_free_blocks == 64)
    finally:
        service.close()


def test_another_gateway_goes_on_with_the_sequences_of_one_that_is_gone(service: SchedulerProcess) -> None:
    worker = service.worker()
    worker.hold(after=5)
    gone, other = service.gateway(), service.gateway()
    gone.wait_ready()
    other.wait_ready()
    gone.send(make_submit(1, [1, 2, 3], max_tokens=190))
    gone.wait(lambda: len(gone.tokens[1]) == 5)
    received = gone.tokens[1][:3]
    gone.close()
    worker.hold(after=50)
    wait_for(lambda: worker.num_steps == 50)
    other.send(make_submit(7, [1, 2, 3, 0], request_id="r1", num_prompt_tokens=3, max_tokens=190, resumes=True))
    other.wait(lambda: 7 in other.rejected)
    assert (other.rejected[7].reason, other.rejected[7].field) == (RejectReason.INVALID, "resumes")
    resume = make_submit(8, [1, 2, 3, *received], request_id="r1", num_prompt_tokens=3, max_tokens=190, resumes=True)
    other.send(resume)
    worker.go_on()
    other.wait(lambda: 8 in other.ended)
    assert received + other.tokens[8] == complete([1, 2, 3], 190)
    # Nothing was computed twice.
    assert worker.num_steps <= 192


def test_worker_that_is_replaced_continues_every_stream(service: SchedulerProcess) -> None:
    first = service.worker()
    gateway = service.gateway()
    gateway.wait_ready()
    for stream in range(6):
        gateway.send(make_submit(stream, [stream, 3], max_tokens=150))
    gateway.wait(lambda: all(len(gateway.tokens[stream]) > 5 for stream in range(6)))
    first.hold()
    service.stop(first)
    service.worker()
    gateway.wait(lambda: len(gateway.ended) == 6)
    for stream in range(6):
        assert gateway.tokens[stream] == complete([stream, 3], 150)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[SchedulerProcess]:
    """A scheduler of two ranks."""
    running = SchedulerProcess(tmp_path, "--tensor-parallel-size", "2")
    yield running
    running.close()


def test_two_ranks_share_the_smaller_cache(pair: SchedulerProcess) -> None:
    workers = pair.worker(num_blocks=40, rank=0, world_size=2), pair.worker(num_blocks=30, rank=1, world_size=2)
    gateway = pair.gateway()
    gateway.wait_ready()
    assert gateway.status is not None
    assert gateway.status.limits is not None
    assert gateway.status.limits.num_blocks == 30
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=10))
    gateway.wait(lambda: 1 in gateway.ended)
    assert gateway.tokens[1] == complete([1, 2, 3], 10)
    assert workers[0].groups == workers[1].groups
    assert len(workers[0].groups) == 1


def test_a_rank_never_computes_with_the_successor_of_another(pair: SchedulerProcess) -> None:
    old, lost = pair.worker(rank=0, world_size=2), pair.worker(rank=1, world_size=2)
    gateway = pair.gateway()
    gateway.wait_ready()
    old.hold()
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=60))
    pair.stop(lost)
    replacing = pair.worker(rank=1, world_size=2)
    gateway.wait(lambda: gateway.status is not None and gateway.status.state is not EngineState.READY)
    old.go_on()
    # The one that is left is told of a group that it cannot join, and takes part in nothing any more.
    wait_for(lambda: len(old.groups) == 2)
    assert replacing.groups == []
    pair.stop(old)
    fresh = pair.worker(rank=0, world_size=2)
    gateway.wait(lambda: 1 in gateway.ended)
    assert gateway.tokens[1] == complete([1, 2, 3], 60)
    assert len({*old.groups, *fresh.groups, *replacing.groups}) == 3
    assert fresh.groups == replacing.groups


@pytest.mark.parametrize("dead_rank", [0, 1, 2])
def test_no_rank_is_sent_to_meet_one_that_died_before_all_had_come(tmp_path: Path, dead_rank: int) -> None:
    running = SchedulerProcess(tmp_path, "--tensor-parallel-size", "3")
    try:
        gateway = running.gateway()
        first, second, last = (dead_rank + 1) % 3, dead_rank, (dead_rank + 2) % 3
        alive = [running.worker(rank=first, world_size=3)]
        dead = running.worker(rank=second, world_size=3)
        gateway.wait(lambda: gateway.status is not None and gateway.status.done == 2)
        running.stop(dead)
        alive.append(running.worker(rank=last, world_size=3))
        alive.append(running.worker(rank=second, world_size=3))
        gateway.wait_ready()
        assert dead.groups == []
        assert len(alive[0].groups) == 1
        assert alive[0].groups == alive[1].groups == alive[2].groups
    finally:
        running.close()


def test_a_member_of_a_group_whose_others_stay_away_is_dismissed(pair: SchedulerProcess) -> None:
    alone = pair.worker(rank=1, world_size=2, group=b"together")
    wait_for(lambda: len(alone.groups) == 1)
    assert alone.groups != [b"together"]
    pair.stop(alone)
    for rank in range(2):
        pair.worker(rank=rank, world_size=2)
    pair.gateway().wait_ready()


def test_ranks_of_one_group_go_on_with_a_new_scheduler(pair: SchedulerProcess) -> None:
    workers = [pair.worker(rank=rank, world_size=2, group=b"together") for rank in range(2)]
    pair.gateway().wait_ready()
    assert [worker.groups for worker in workers] == [[b"together"], [b"together"]]


def left(token_ids: list[int], block_ids: list[int]) -> LeftSequence:
    return LeftSequence(int_bytes(token_ids), int_bytes(block_ids), "")


def test_what_all_ranks_hold_already_is_not_computed_again(pair: SchedulerProcess) -> None:
    prompts = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    both, one = left(prompts[0][:4], [7]), left(prompts[1][:4], [8])
    pair.worker(rank=0, world_size=2, left=(both, one))
    pair.worker(rank=1, world_size=2, left=(both,))
    gateway = pair.gateway()
    gateway.wait_ready()
    for stream, prompt in enumerate(prompts):
        gateway.send(make_submit(stream, prompt, max_tokens=5))
    gateway.wait(lambda: len(gateway.ended) == 2)
    assert [gateway.ended[stream].num_cached_tokens for stream in range(2)] == [4, 0]
    assert [gateway.tokens[stream] for stream in range(2)] == [complete(prompt, 5) for prompt in prompts]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stops_with_exit_code_0(service: SchedulerProcess, signum: int) -> None:
    service.process.send_signal(signum)
    assert service.process.wait(PATIENCE_S) == 0


def test_address_in_use_is_one_clear_line() -> None:
    holder = zmq.Context().socket(zmq.ROUTER)
    port = holder.bind_to_random_port("tcp://127.0.0.1")
    command = [sys.executable, "-m", "scheduler_service.core", "--worker-address", "tcp://127.0.0.1:0"]
    command += ["--request-address", f"tcp://127.0.0.1:{port}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"scheduler: cannot bind tcp://127.0.0.1:{port}: Address already in use; choose another address or free it"
    ]


def test_contradicting_sizes_are_one_clear_line() -> None:
    command = [sys.executable, "-m", "scheduler_service.core", "--max-num-batched-tokens", "8", "--max-num-seqs", "9"]
    command += ["--worker-address", "tcp://127.0.0.1:0", "--request-address", "tcp://127.0.0.1:0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 1
    assert "lower --max-num-seqs or raise" in result.stderr


def test_a_flood_of_one_tenant_neither_fills_the_queue_for_another_nor_comes_first(tmp_path: Path) -> None:
    service = SchedulerProcess(tmp_path, "--max-waiting-requests", "100")
    try:
        worker, gateway = service.worker(), service.gateway()
        gateway.wait_ready()
        worker.hold()
        # The first eight get the slots; of the others as many as may wait, or eight less if all came at once.
        for stream in range(200):
            gateway.send(make_submit(stream, [1, stream % 50, 3], tenant="flood"))
        gateway.wait(lambda: len(gateway.rejected) >= 92)
        for stream in range(1000, 1010):
            gateway.send(make_submit(stream, [2, stream % 50, 3], tenant="other"))
        gateway.send(make_submit(2000, [1], tenant="flood"))
        gateway.wait(lambda: 2000 in gateway.rejected)
        assert "of the requests are this tenant's" in gateway.rejected[2000].message
        assert not any(1000 <= stream < 1010 for stream in gateway.rejected)
        worker.go_on()
        gateway.wait(lambda: all(stream in gateway.ended for stream in range(1000, 1010)))
        num_flooding = sum(stream < 1000 for stream in gateway.ended)
        gateway.wait(lambda: len(gateway.ended) + len(gateway.rejected) == 211)
    finally:
        service.close()
    # Those that had the slots, then as many as the other tenant's ten, and what runs beside the last of these.
    assert num_flooding <= 8 + 10 + 2 * 8


def test_a_hello_that_a_cut_network_delivers_late_takes_no_stream_away(service: SchedulerProcess) -> None:
    worker = service.worker()
    worker.hold(after=3)
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=20))
    gateway.wait(lambda: bool(gateway.tokens[1]))
    with gateway.context.socket(zmq.DEALER) as old:
        old.connect(service.request_address)
        for message in (Hello("late", 0), Locate(7, "r1")):
            old.send(gateway.codec.encode(message, gateway.incarnation, ANY))
        # The answer to what came after the greeting goes where the gateway is.
        gateway.wait(lambda: 7 in gateway.located)
    worker.go_on()
    gateway.wait(lambda: 1 in gateway.ended)
    assert gateway.tokens[1] == complete([1, 2, 3], 20)
