"""What does each method of vllm.grpc.engine.VllmEngine do?"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from scheduler_service.gateway import handlers
from scheduler_service.gateway.auth.caller import current_caller
from scheduler_service.gateway.exceptions import InvalidArgumentError, MethodNotServedError
from scheduler_service.gateway.gateway import Gateway
from scheduler_service.gateway.vllm_engine.answer import Answer
from scheduler_service.gateway.vllm_engine.conversion import in_callers_words, to_generate_request
from scheduler_service.gateway.vllm_engine.info import EngineInfo
from scheduler_service.gateway.vllm_engine.kv_events import KvEventWriter
from scheduler_service.gateway.vllm_engine.open_requests import OpenRequests, RequestKey
from scheduler_service.gateway.vllm_engine.tokenizer_files import to_chunks, tokenizer_archive

SERVICE_NAME: str = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name


class VllmEngineService:
    """The service over what the gateway has."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._open = OpenRequests()
        self._info = EngineInfo(gateway.model, gateway.engines, gateway.version)
        self._archive: asyncio.Task[bytes] | None = None

    def grpc_handler(self) -> grpc.GenericRpcHandler:
        """The methods as gRPC wants them registered."""
        vllm, unary, streaming = vllm_engine_pb2, handlers.unary, handlers.server_streaming
        methods = {
            "Generate": streaming(vllm.GenerateRequest, self.generate),
            "Abort": unary(vllm.AbortRequest, self.abort),
            "HealthCheck": unary(vllm.HealthCheckRequest, self.health_check),
            "GetModelInfo": unary(vllm.GetModelInfoRequest, _telling(self._info.model_info)),
            "GetServerInfo": unary(vllm.GetServerInfoRequest, _telling(self._info.server_info)),
            "GetLoads": unary(vllm.GetLoadsRequest, _telling(self._info.loads)),
            "GetTokenizer": streaming(common_pb2.GetTokenizerRequest, self.get_tokenizer),
            "SubscribeKvEvents": streaming(common_pb2.SubscribeKvEventsRequest, self.subscribe_kv_events),
            "FlushCache": unary(common_pb2.FlushCacheRequest, self.flush_cache),
            "Embed": unary(vllm.EmbedRequest, _refusing("Embed")),
            "StartProfile": unary(common_pb2.StartProfileRequest, _refusing("StartProfile")),
            "StopProfile": unary(common_pb2.StopProfileRequest, _refusing("StopProfile")),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def generate(self, request: vllm_engine_pb2.GenerateRequest, context: handlers.Context) -> None:
        """Answer one request, unless it is aborted."""
        self._info.last_request_s = time.time()
        answer = Answer(request, context.write)
        try:
            if not await self._open.run(_key(request.request_id), self._generate(request, answer, context)):
                await answer.abort()
        except InvalidArgumentError as error:
            raise in_callers_words(error) from error

    async def _generate(
        self, request: vllm_engine_pb2.GenerateRequest, answer: Answer, context: handlers.Context
    ) -> None:
        _, limits = self._gateway.engines.ready_engine()
        converted = await to_generate_request(request, self._gateway.prompts, limits)
        if converted.output.HasField("prompt_logprobs"):
            answer.begin_prompt_logprobs(converted.token_ids.ids[0])
        await self._gateway.generator.answer(converted, answer.take, time_remaining_s=context.time_remaining())

    async def abort(
        self, request: vllm_engine_pb2.AbortRequest, _context: handlers.Context
    ) -> vllm_engine_pb2.AbortResponse:
        """Abort requests that the same tenant has sent to this gateway."""
        self._open.abort(map(_key, request.request_ids))
        return vllm_engine_pb2.AbortResponse()

    async def health_check(
        self, _request: vllm_engine_pb2.HealthCheckRequest, _context: handlers.Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        """Whether requests should be sent here."""
        found = self._gateway.state.find()
        return vllm_engine_pb2.HealthCheckResponse(healthy=found.is_serving, message=found.reason or "Health")

    async def get_tokenizer(self, _request: common_pb2.GetTokenizerRequest, context: handlers.Context) -> None:
        """Send the tokenizer's files. They are put together once, at the first call."""
        if self._archive is None:
            self._archive = asyncio.create_task(asyncio.to_thread(tokenizer_archive, self._gateway.model))
        for chunk in to_chunks(await asyncio.shield(self._archive)):
            await context.write(chunk)

    async def subscribe_kv_events(
        self, request: common_pb2.SubscribeKvEventsRequest, context: handlers.Context
    ) -> None:
        """Tell what the prefix cache holds, then every change, until the caller leaves."""
        # Callers wait for this, and there may be no event for long.
        await context.send_initial_metadata(())
        writer = KvEventWriter(request.start_sequence_number)
        subscription = self._gateway.engines.cache.subscribe()
        try:
            while True:
                for batch in writer.batches(await subscription.next()):
                    await context.write(batch)
        finally:
            self._gateway.engines.cache.unsubscribe(subscription)

    async def flush_cache(
        self, _request: common_pb2.FlushCacheRequest, _context: handlers.Context
    ) -> common_pb2.FlushCacheResponse:
        """Share nothing any more that is cached now. Running requests keep what they hold, so none is waited for."""
        self._gateway.engines.ready_engine()
        num_blocks = await self._gateway.engines.cache.flush()
        return common_pb2.FlushCacheResponse(success=True, message=f"{num_blocks} cached blocks were forgotten")


def _key(request_id: str) -> RequestKey:
    """Callers know each other's requests as little as each other."""
    return current_caller().tenant, request_id


def _telling(tell: Callable[[], Any]) -> Callable[[Any, handlers.Context], Any]:
    """A method whose answer depends on nothing in the request."""

    async def answer(_request: Any, _context: handlers.Context) -> Any:
        return tell()

    return answer


def _refusing(method: str) -> Callable[[Any, handlers.Context], Any]:
    async def refuse(_request: Any, _context: handlers.Context) -> Any:
        raise MethodNotServedError(method)

    return refuse
