"""Is every gRPC call counted with the status that its caller got, whatever kind of method it was for?"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from prometheus_client import CollectorRegistry

from scheduler_service.gateway.call_counter import CallCounter
from scheduler_service.gateway.call_observer import CallObserver
from scheduler_service.gateway.errors import refusing_handler
from scheduler_service.gateway.exceptions import UnknownMethodError
from scheduler_service.gateway.trace_parent import TraceParent, trace_parent
from tests.fakes.patience import PATIENCE_S

# Any service with methods of these names; a call is counted by its name if a protobuf file describes it.
NAME = "pagewire.test.Service"


class Service:
    """Methods of all kinds. What they are asked says what they do."""

    def __init__(self) -> None:
        self.parents: list[TraceParent] = []
        self.is_waiting = asyncio.Event()

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.parents.append(trace_parent())
        await self._do(request, context)
        return b"answer"

    async def written(self, request: bytes, context: Any) -> None:
        await context.write(b"one")
        await self._do(request, context)

    async def generated(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await self._do(request, context)
        yield b"two"

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            await self._do(request, context)
            yield request

    async def _do(self, request: bytes, context: Any) -> None:
        match request:
            case b"abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "nothing")
            case b"fail":
                raise RuntimeError("a fault")
            case b"set":
                context.set_code(grpc.StatusCode.DATA_LOSS)
            case b"wait":
                self.is_waiting.set()
                await asyncio.get_running_loop().create_future()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Written": grpc.unary_stream_rpc_method_handler(self.written),
                "Generated": grpc.unary_stream_rpc_method_handler(self.generated),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
            },
        )


class Refusing(grpc.GenericRpcHandler):
    """Refuses every method."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return refusing_handler(UnknownMethodError(handler_call_details.method))


class Bench:
    """A server, a connection to it, and its counts."""

    def __init__(
        self, server: grpc.aio.Server, service: Service, channel: grpc.aio.Channel, registry: CollectorRegistry
    ) -> None:
        self.server = server
        self.service = service
        self.channel = channel
        self._registry = registry

    @property
    def counted(self) -> dict[tuple[str, str], float]:
        """Calls by method and status."""
        (family,) = [family for family in self._registry.collect() if family.name == "pagewire:calls"]
        assert all(sample.labels["protocol"] == "grpc" for sample in family.samples)
        return {(sample.labels["method"], sample.labels["code"]): sample.value for sample in family.samples}

    async def call(self, method: str, request: bytes, **options: Any) -> None:
        path = f"/{NAME}/{method}"
        if method == "Unary":
            await self.channel.unary_unary(path)(request, **options)
        elif method == "Both":
            async for _ in self.channel.stream_stream(path)(iter([request]), **options):
                pass
        else:
            async for _ in self.channel.unary_stream(path)(request, **options):
                pass


@pytest.fixture(scope="module", autouse=True)
def described() -> None:
    """Have a protobuf file describe the service, as those of the real ones do."""
    file = descriptor_pb2.FileDescriptorProto(name="pagewire/test.proto", package="pagewire.test")
    file.message_type.add(name="Empty")
    service = file.service.add(name="Service")
    for method in ("Unary", "Written", "Generated", "Both"):
        service.method.add(name=method, input_type=".pagewire.test.Empty", output_type=".pagewire.test.Empty")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


def with_bench(work: Callable[[Bench], Awaitable[None]], *, traces: bool = False) -> Bench:
    """Do something, and wait until the server has finished with it."""

    async def run() -> Bench:
        registry, service = CollectorRegistry(), Service()
        observer = CallObserver(CallCounter(registry), traces=traces)
        server = grpc.aio.server(interceptors=[observer])
        server.add_generic_rpc_handlers((service.handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            bench = Bench(server, service, channel, registry)
            await work(bench)
        await server.stop(PATIENCE_S)
        return bench

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["Unary", "Written", "Generated", "Both"])
@pytest.mark.parametrize(
    ("request_bytes", "code"), [(b"", "OK"), (b"abort", "NOT_FOUND"), (b"fail", "UNKNOWN"), (b"set", "DATA_LOSS")]
)
def test_calls_are_counted_by_their_status(method: str, request_bytes: bytes, code: str) -> None:
    async def work(bench: Bench) -> None:
        if code == "OK":
            await bench.call(method, request_bytes)
        else:
            with pytest.raises(grpc.RpcError) as caught:
                await bench.call(method, request_bytes)
            assert caught.value.code().name == code  # type: ignore[attr-defined]

    assert with_bench(work).counted == {(f"{NAME}/{method}", code): 1}


@pytest.mark.parametrize("method", ["Unary", "Written", "Generated", "Both"])
def test_a_caller_who_leaves_has_cancelled(method: str) -> None:
    async def work(bench: Bench) -> None:
        call = asyncio.create_task(bench.call(method, b"wait", timeout=PATIENCE_S))
        await bench.service.is_waiting.wait()
        call.cancel()

    assert with_bench(work).counted == {(f"{NAME}/{method}", "CANCELLED"): 1}


def test_a_deadline_that_passes_is_told_apart() -> None:
    async def work(bench: Bench) -> None:
        # The connection is there, so the call reaches the server in time.
        await bench.call("Unary", b"")
        with pytest.raises(grpc.RpcError):
            # It arrives as 2.41 seconds.
            await bench.call("Written", b"wait", timeout=2.4001)

    assert with_bench(work).counted == {(f"{NAME}/Unary", "OK"): 1, (f"{NAME}/Written", "DEADLINE_EXCEEDED"): 1}


def test_methods_that_nobody_knows_are_counted_as_one() -> None:
    async def work(bench: Bench) -> None:
        bench.server.add_generic_rpc_handlers((Refusing(),))
        for method in ("/no.Such/Method", "/no.Such/Other", f"/{NAME}/Missing", "no slash", f"/{NAME}"):
            with pytest.raises(grpc.RpcError):
                await bench.channel.unary_unary(method)(b"")

    assert with_bench(work).counted == {("other", "UNIMPLEMENTED"): 5}


@pytest.mark.parametrize("traces", [True, False])
def test_a_call_learns_its_trace(traces: bool) -> None:
    async def work(bench: Bench) -> None:
        metadata = (("traceparent", "00-a-b-01"), ("tracestate", "x=y"), ("other", "z"))
        await bench.call("Unary", b"", metadata=metadata)
        await bench.call("Unary", b"")
        expected = TraceParent("00-a-b-01", "x=y") if traces else TraceParent()
        assert bench.service.parents == [expected, TraceParent()]

    with_bench(work, traces=traces)
