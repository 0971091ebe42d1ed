"""A gateway's engine pool whose states can be waited for, and a request for it."""

import asyncio
from collections.abc import Callable

from pagewire.ipc.requests import EngineState, Sampling
from scheduler_service.gateway.engines.chooser import Chooser
from scheduler_service.gateway.engines.engine_socket import Connector
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_tokenizer

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


class WatchedPool:
    """A pool, for a test that runs an event loop."""

    def __init__(self, *addresses: str, recovery_timeout_s: float = 60.0) -> None:
        self._changed = asyncio.Event()
        self.pool = EnginePool(
            addresses,
            Connector("test", "model"),
            Tokenizer(byte_level_tokenizer(), {}),
            self._changed.set,
            Chooser(),
            recovery_timeout_s,
        )

    async def until(self, state: EngineState) -> None:
        """Wait until the engines together are in this state."""
        async with asyncio.timeout(PATIENCE_S):
            while self.pool.status.state is not state:
                await self._changed.wait()
                self._changed.clear()

    async def until_all(self, *states: EngineState) -> None:
        """Wait until each engine is in its state, in the order of their addresses."""
        await until(lambda: tuple(engine.status.state for engine in self.pool.engines) == states)


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until this holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (what a test waits for has no event of its own)
            await asyncio.sleep(0.005)


async def taken(take: Callable[[], object]) -> object:
    """What a fake's method returns that blocks its thread."""
    return await asyncio.to_thread(take)
