"""Does vLLM's protocol stand callers who name odd numbers, or leave while they are answered?"""

import asyncio
import gc

import pytest

from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.vllm_engine.kv_events import KvEventWriter
from scheduler_service.gateway.vllm_engine.open_requests import OpenRequests


def test_numbers_of_batches_go_on_after_the_highest() -> None:
    writer = KvEventWriter(2**64 - 1)
    (batch,) = writer.batches(CacheNews(is_snapshot=True, events=()))
    assert batch.sequence_number == 0


def test_a_request_that_fails_when_its_caller_has_left_is_not_complained_about() -> None:
    complaints: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        began = asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise ConnectionError("nobody reads")

        answering = asyncio.create_task(OpenRequests().run(("", "a"), work()))
        await began.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(run())
    assert complaints == []
