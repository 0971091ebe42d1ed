"""What may the callers of the other protocols do when a gateway asks for API keys?"""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc

from pagewire.ipc.cache_events import FlushCache, WatchCache
from pagewire.ipc.requests import Abort, Submit
from tests.fakes.api_keys import bearer, write_keys
from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import MODEL_NAME, TIMEOUT_S, GatewayProcess
from tests.fakes.tiny_model import write_tiny_model

REQUEST = vllm_engine_pb2.GenerateRequest(request_id="r-1", tokenized={"input_ids": [1]}, stream=True)


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    keys = folder / "keys.toml"
    write_keys(keys, ana={}, bob={}, root={"roles": ["admin"]})
    flags = ("--api-keys", str(keys))
    with GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log", *flags) as process:
        process.wait_until_serving()
        yield process


@pytest.fixture
def vllm(gateway: GatewayProcess) -> Any:
    return vllm_engine_pb2_grpc.VllmEngineStub(gateway.channel())


def test_what_tells_of_others_or_touches_them_is_for_admins(vllm: Any, scheduler: FakeScheduler) -> None:
    for name, code in (("ana", grpc.StatusCode.PERMISSION_DENIED), ("nobody", grpc.StatusCode.UNAUTHENTICATED)):
        with pytest.raises(grpc.RpcError) as caught:
            vllm.FlushCache(common_pb2.FlushCacheRequest(), metadata=bearer(name), timeout=TIMEOUT_S)
        assert caught.value.code() is code
        call = vllm.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), metadata=bearer(name), timeout=TIMEOUT_S)
        assert call.code() is code
    events = vllm.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), metadata=bearer("root"), timeout=TIMEOUT_S)
    assert scheduler.take(WatchCache).wanted
    flush = vllm.FlushCache.future(common_pb2.FlushCacheRequest(), metadata=bearer("root"), timeout=TIMEOUT_S)
    assert scheduler.take(FlushCache).flush_id == 1
    flush.cancel()
    events.cancel()
    assert not scheduler.take(WatchCache).wanted


def test_nobody_aborts_the_requests_of_others(vllm: Any, scheduler: FakeScheduler) -> None:
    ana = vllm.Generate(REQUEST, metadata=bearer("ana"), timeout=TIMEOUT_S)
    of_ana = scheduler.take(Submit)
    bob = vllm.Generate(REQUEST, metadata=bearer("bob"), timeout=TIMEOUT_S)
    of_bob = scheduler.take(Submit)
    vllm.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r-1"]), metadata=bearer("bob"), timeout=TIMEOUT_S)
    assert scheduler.take(Abort).stream_ids == (of_bob.stream_id,)
    assert next(bob).complete.finish_reason == "abort"
    scheduler.send_tokens([(of_ana.stream_id, 7)])
    assert list(next(ana).chunk.token_ids) == [7]
    ana.cancel()
    assert scheduler.take(Abort).stream_ids == (of_ana.stream_id,)


def test_tenants_share_no_blocks(gateway: GatewayProcess, vllm: Any, scheduler: FakeScheduler) -> None:
    salts = []
    for name in ("ana", "bob"):
        call = vllm.Generate(REQUEST, metadata=bearer(name), timeout=TIMEOUT_S)
        salts.append(scheduler.take(Submit).cache_salt)
        call.cancel()
        scheduler.take(Abort)
    assert len(set(salts)) == 2
    with triton.InferenceServerClient(gateway.address) as client:
        assert client.is_model_ready(MODEL_NAME, headers=dict(bearer("ana")))
