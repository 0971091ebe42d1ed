"""How is every gRPC call counted, whichever service it is for, and how does it learn the trace it belongs to?"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool

from scheduler_service.gateway.call_counter import CallCounter
from scheduler_service.gateway.trace_parent import TraceParent, set_trace_parent

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

_UNKNOWN_METHOD = "other"
# gRPC sends what is left until a deadline in a few digits, rounded up by as much as this share of it. Besides, a call
# may take longer to reach the server than the word that its caller has given up.
_ROUNDED_UP, _ON_THE_WAY_S = 0.01, 0.1
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_MAKERS: dict[tuple[bool, bool], Callable[..., "Handler"]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class CallObserver(grpc.aio.ServerInterceptor):
    """Stands around every method of the server; those that no protobuf file describes are counted as one.

    Args:
        counter: told of each call.
        traces: whether calls learn their traces.
    """

    def __init__(self, counter: CallCounter, *, traces: bool) -> None:
        self._counter = counter
        self._traces = traces

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Give the method's handler, observed."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        parent = _parent(handler_call_details) if self._traces else None
        return self._observed(handler, _label(handler_call_details.method), parent)

    def _observed(self, handler: "Handler", method: str, parent: TraceParent | None) -> "Handler":
        kind = (bool(handler.request_streaming), bool(handler.response_streaming))
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def answer(request: Any, context: Any) -> Any:
            with self._around(method, parent, context):
                return await inner(request, context)

        async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._around(method, parent, context):
                async for response in inner(request, context):
                    yield response

        if inspect.isasyncgenfunction(inner):
            observed: Any = generate
        elif inspect.iscoroutinefunction(inner):
            observed = answer
        else:
            return handler
        return _MAKERS[kind](observed, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _around(self, method: str, parent: TraceParent | None, context: Any) -> Iterator[None]:
        if parent is not None:
            set_trace_parent(parent)
        given_s = context.time_remaining()
        with self._counter.call("grpc", method, "OK") as call:
            try:
                yield
            except (asyncio.CancelledError, GeneratorExit):
                call.code = "DEADLINE_EXCEEDED" if _is_late(context, given_s) else "CANCELLED"
                raise
            except BaseException:
                call.code = _code(context) or "UNKNOWN"
                raise
            else:
                call.code = _code(context) or "OK"


@lru_cache(maxsize=256)
def _label(method: str) -> str:
    """What a method ("/package.Service/Method") is counted as: callers can ask for any, and a name costs memory."""
    service, _, name = method.removeprefix("/").rpartition("/")
    try:
        described = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return _UNKNOWN_METHOD
    return f"{service}/{name}" if name in described.methods_by_name else _UNKNOWN_METHOD


def _is_late(context: Any, given_s: float | None) -> bool:
    """Whether a call that its caller left had reached its deadline there, of which it was told as this long away."""
    remaining_s = context.time_remaining()
    if given_s is None or remaining_s is None:
        return False
    return bool(remaining_s <= _ROUNDED_UP * given_s + _ON_THE_WAY_S)


def _code(context: Any) -> str | None:
    """The status that was set; None if none was."""
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return _CODE_NAMES.get(number) if number else None


def _parent(details: grpc.HandlerCallDetails) -> TraceParent | None:
    found = {key: value for key, value in details.invocation_metadata or () if key in ("traceparent", "tracestate")}
    parent = found.get("traceparent")
    return TraceParent(str(parent), str(found.get("tracestate", ""))) if parent else None
