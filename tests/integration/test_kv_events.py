"""Do KV events tell what the prefix cache holds, whatever happens to it? Gateway and scheduler are real."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc

from tests.fakes.fake_worker import FakeWorker
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.step_executor import complete
from tests.fakes.tiny_model import write_tiny_model

BLOCK_SIZE, NUM_BLOCKS = 4, 8
PROMPT = list(range(10, 22))


class Engine:
    """A scheduler process with a fake worker, and what is needed to start another in its place."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/requests"
        self._workers = f"ipc://{folder}/workers"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "scheduler_service.core", "--block-size", str(BLOCK_SIZE)]
        command += ["--request-address", self.address, "--worker-address", self._workers, "--max-num-seqs", "4"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert "listening" in self._process.stdout.readline()
        self.worker = FakeWorker(self._workers, num_blocks=NUM_BLOCKS)

    def kill(self) -> None:
        self.worker.stop()
        self._process.kill()
        self._process.communicate()

    def replace_worker(self) -> None:
        """Another worker greets, so what this one held is lost."""
        self.worker.stop()
        self.worker = FakeWorker(self._workers, num_blocks=NUM_BLOCKS)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    running = Engine(tmp_path)
    yield running
    running.kill()


@pytest.fixture
def gateway(engine: Engine, tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(write_tiny_model(tmp_path / "model"), engine.address, tmp_path / "log") as process:
        process.wait_until_serving()
        yield process


@pytest.fixture
def vllm(gateway: GatewayProcess) -> Any:
    return vllm_engine_pb2_grpc.VllmEngineStub(gateway.channel())


class Subscriber:
    """Follows the events of one subscription, as a router does."""

    def __init__(self, vllm: Any, last_number: int = 0) -> None:
        self.call = vllm.SubscribeKvEvents(
            common_pb2.SubscribeKvEventsRequest(start_sequence_number=last_number), timeout=PATIENCE_S
        )
        self.last_number = last_number
        self.last_event = 0
        self.num_cleared = 0
        self.tokens: dict[int, tuple[int, ...]] = {}
        """Block hash: all tokens up to the block's end."""
        self.salts: set[str] = set()

    def read(self) -> None:
        """Take the next batch."""
        batch = next(self.call)
        self.last_number += 1
        assert batch.sequence_number == self.last_number
        for event in batch.events:
            self.last_event += 1
            assert event.event_id == self.last_event
            self._apply(event)

    def read_until(self, prefixes: set[tuple[int, ...]]) -> None:
        """Take batches until just these prefixes are cached; none: at least one batch."""
        while set(self.tokens.values()) != prefixes or not self.num_cleared:
            self.read()

    def _apply(self, event: common_pb2.KvCacheEvent) -> None:
        match event.WhichOneof("data"):
            case "stored":
                stored = event.stored
                before = self.tokens[stored.parent_block_hash] if stored.HasField("parent_block_hash") else ()
                assert stored.tier == common_pb2.KV_CACHE_TIER_DEVICE
                self.salts.add(stored.cache_salt)
                for block in stored.blocks:
                    assert block.block_size == len(block.token_ids) == BLOCK_SIZE
                    assert block.block_hash not in self.tokens
                    before = self.tokens[block.block_hash] = (*before, *block.token_ids)
            case "removed":
                for block_hash in event.removed.block_hashes:
                    del self.tokens[block_hash]
            case "cleared":
                self.num_cleared += 1
                self.tokens.clear()


def generate(vllm: Any, prompt: list[int], max_tokens: int) -> vllm_engine_pb2.GenerateComplete:
    request = vllm_engine_pb2.GenerateRequest(
        tokenized={"input_ids": prompt}, sampling_params={"max_tokens": max_tokens, "temperature": 0.0}
    )
    (response,) = vllm.Generate(request, timeout=TIMEOUT_S)
    return response.complete


def prefixes_of(token_ids: list[int]) -> set[tuple[int, ...]]:
    """The full blocks of a sequence whose last token was never computed."""
    ends = range(BLOCK_SIZE, len(token_ids), BLOCK_SIZE)
    return {tuple(token_ids[:end]) for end in ends}


def test_the_first_word_comes_at_once(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    subscriber.call.initial_metadata()
    subscriber.read()
    assert (subscriber.tokens, subscriber.num_cleared) == ({}, 1)


def test_metadata_comes_while_there_is_no_scheduler(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/nobody"
    with GatewayProcess(write_tiny_model(tmp_path / "model"), address, tmp_path / "log") as process:
        subscriber = Subscriber(vllm_engine_pb2_grpc.VllmEngineStub(process.channel()))
        assert subscriber.call.initial_metadata() is not None
        # The gateway's end is the subscription's.
        process.process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            subscriber.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_blocks_are_stored_and_removed_as_the_cache_does(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    output = generate(vllm, PROMPT, max_tokens=5)
    assert list(output.output_ids) == complete(PROMPT, 5)
    first = prefixes_of([*PROMPT, *output.output_ids])
    subscriber.read_until(first)
    # Seven of eight blocks: three of the four that were cached have to go, the deepest first.
    other = [1, 2, 3, 4, 5, 6]
    output = generate(vllm, other, max_tokens=20)
    second = prefixes_of([*other, *output.output_ids])
    subscriber.read_until(second | {tuple(PROMPT[:4])})
    assert generate(vllm, PROMPT, max_tokens=1).cached_tokens == 4


def test_a_late_subscriber_gets_what_was_told_to_others(vllm: Any) -> None:
    early = Subscriber(vllm)
    early.read()
    generate(vllm, PROMPT, max_tokens=1)
    early.read_until(prefixes_of([*PROMPT, 0]))
    late = Subscriber(vllm, last_number=41)
    late.read()
    assert late.tokens == early.tokens
    generate(vllm, [1, 2, 3, 4, 5], max_tokens=1)
    both = prefixes_of([*PROMPT, 0]) | {(1, 2, 3, 4)}
    early.read_until(both)
    late.read_until(both)
    assert early.num_cleared == late.num_cleared == 1


def test_a_gateway_that_dies_leaves_the_subscribers_of_others_alone(
    vllm: Any, gateway: GatewayProcess, engine: Engine, tmp_path: Path
) -> None:
    here = Subscriber(vllm)
    here.read()
    model = write_tiny_model(tmp_path / "model")
    with GatewayProcess(model, engine.address, tmp_path / "other-log") as other:
        other.wait_until_serving()
        there = Subscriber(vllm_engine_pb2_grpc.VllmEngineStub(other.channel()))
        there.read()
        generate(vllm, PROMPT, max_tokens=1)
        for subscriber in (here, there):
            subscriber.read_until(prefixes_of([*PROMPT, 0]))
        other.process.kill()
        other.process.wait()
    generate(vllm, [1, 2, 3, 4, 5], max_tokens=1)
    here.read_until(prefixes_of([*PROMPT, 0]) | {(1, 2, 3, 4)})
    assert here.num_cleared == 1


def test_flush_empties_the_cache_and_tells(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    subscriber.read()
    generate(vllm, PROMPT, max_tokens=1)
    subscriber.read_until(prefixes_of([*PROMPT, 0]))
    flushed = vllm.FlushCache(common_pb2.FlushCacheRequest(), timeout=TIMEOUT_S)
    assert (flushed.success, flushed.message) == (True, "3 cached blocks were forgotten")
    subscriber.read_until(set())
    assert generate(vllm, PROMPT, max_tokens=1).cached_tokens == 0
    subscriber.read_until(prefixes_of([*PROMPT, 0]))


def test_flush_without_a_scheduler_is_unavailable(vllm: Any, engine: Engine) -> None:
    engine.kill()
    deadline_s = time.monotonic() + PATIENCE_S
    while vllm.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).healthy:
        assert time.monotonic() < deadline_s
    with pytest.raises(grpc.RpcError) as caught:
        vllm.FlushCache(common_pb2.FlushCacheRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    engine.start()


def test_subscribers_start_over_with_another_worker_and_another_scheduler(
    vllm: Any, gateway: GatewayProcess, engine: Engine
) -> None:
    subscriber = Subscriber(vllm)
    subscriber.read()
    generate(vllm, PROMPT, max_tokens=1)
    subscriber.read_until(prefixes_of([*PROMPT, 0]))
    engine.replace_worker()
    subscriber.read_until(set())
    gateway.wait_until_serving()
    generate(vllm, PROMPT[:8], max_tokens=1)
    subscriber.read_until(prefixes_of([*PROMPT[:8], 0]))
    engine.kill()
    engine.start()
    subscriber.read_until(set())
    gateway.wait_until_serving()
    generate(vllm, [1, 2, 3, 4, 5], max_tokens=1)
    subscriber.read_until({(1, 2, 3, 4)})
