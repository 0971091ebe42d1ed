"""Does the gateway notice a scheduler that is connected but says nothing, and tell the scheduler of each abort once?"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pagewire.ipc.requests import Abort, EngineState, Goodbye, Sampling, Submit
from scheduler_service.gateway import scheduler_client
from scheduler_service.gateway.exceptions import EngineUnavailableError
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids, byte_level_tokenizer

GENERATION = Generation(
    request_id="r",
    prompt_ids=int32_array([1]),
    received_ids=int32_array(),
    sampling=Sampling(1.0, 0, 1.0, 0.0, 0),
    max_tokens=10,
    min_tokens=0,
    stop_token_ids=(),
    end_token_ids=frozenset(),
    ignore_eos=False,
    priority=0,
    cache_salt="",
    deadline_s=None,
    stop_texts=(),
    include_stop=False,
    skip_special_tokens=True,
    sends_text=True,
    is_final_only=False,
)


class Watched:
    """A client whose states can be waited for."""

    def __init__(self, address: str) -> None:
        self._changed = asyncio.Event()
        self.client = SchedulerClient(
            address, "test", Tokenizer(byte_level_tokenizer(), {}), on_state_change=self._changed.set
        )

    async def until(self, state: EngineState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.client.status.state is not state:
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/requests.sock"


async def taken(take: Callable[[], object]) -> object:
    return await asyncio.to_thread(take)


def test_silent_scheduler_is_unavailable_until_it_speaks(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_client, "_HELLO_PERIOD_S", 0.01)
    monkeypatch.setattr(scheduler_client, "_QUIET_AFTER_S", 0.05)
    # A scheduler that speaks is patiently waited for, however slow its thread is.
    monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", PATIENCE_S)

    async def run(scheduler: FakeScheduler) -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        stream = client.open(GENERATION)
        submit = await taken(lambda: scheduler.take(Submit))
        assert isinstance(submit, Submit)
        scheduler.is_silent = True
        monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", 0.2)
        await watched.until(EngineState.UNAVAILABLE)
        assert "is silent" in client.status.detail
        with pytest.raises(EngineUnavailableError):
            client.open(GENERATION)
        monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", PATIENCE_S)
        scheduler.is_silent = False
        await watched.until(EngineState.READY)
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
        assert (await stream.next()).text == "x"
        client.shut_down()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))


def test_streams_closed_together_are_aborted_by_one_message(address: str) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        streams = [client.open(GENERATION) for _ in range(5)]
        assert len({stream.stream_id for stream in streams}) == client.num_streams == 5
        for _ in streams:
            await taken(lambda: scheduler.take(Submit))
        for stream in [*streams[:3], *streams[:3]]:
            client.close(stream)
        first = await taken(lambda: scheduler.take(Abort))
        assert first == Abort(tuple(stream.stream_id for stream in streams[:3]))
        client.shut_down()
        assert await taken(lambda: scheduler.take(Goodbye)) == Goodbye()
        for stream in streams[3:]:
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await stream.next()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))
        assert scheduler.take_all() == []


def test_stream_ids_are_not_reused_while_they_are_open(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_client, "_MAX_STREAM_ID", 3)

    async def run() -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        first, second = client.open(GENERATION), client.open(GENERATION)
        client.close(client.open(GENERATION))
        client.close(first)
        reused = [client.open(GENERATION).stream_id for _ in range(2)]
        assert (first.stream_id, second.stream_id, reused) == (1, 2, [1, 3])
        client.shut_down()

    with FakeScheduler(address):
        asyncio.run(run())
