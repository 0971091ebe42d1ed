"""What does each method of inference.GRPCInferenceService do?"""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from pagewire.open_inference import grpc_service_pb2 as messages
from scheduler_service.gateway import handlers
from scheduler_service.gateway.errors import to_status
from scheduler_service.gateway.exceptions import InvalidArgumentError, RequestError
from scheduler_service.gateway.gateway import Gateway
from scheduler_service.gateway.open_inference import inference

logger = logging.getLogger(__name__)

SERVICE_NAME: str = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_SERVER_NAME = "pagewire"
# Of one stream; further requests are read once there is room.
_MAX_OPEN_REQUESTS = 128


class OpenInferenceService:
    """The service over what the gateway has."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def grpc_handler(self) -> grpc.GenericRpcHandler:
        """The methods as gRPC wants them registered."""
        unary = handlers.unary
        methods = {
            "ServerLive": unary(messages.ServerLiveRequest, self.server_live),
            "ServerReady": unary(messages.ServerReadyRequest, self.server_ready),
            "ModelReady": unary(messages.ModelReadyRequest, self.model_ready),
            "ServerMetadata": unary(messages.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": unary(messages.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": unary(messages.ModelInferRequest, self.model_infer),
            "ModelStreamInfer": handlers.bidirectional(messages.ModelInferRequest, self.model_stream_infer),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def server_live(
        self, _request: messages.ServerLiveRequest, _context: handlers.Context
    ) -> messages.ServerLiveResponse:
        """It answers."""
        return messages.ServerLiveResponse(live=True)

    async def server_ready(
        self, _request: messages.ServerReadyRequest, _context: handlers.Context
    ) -> messages.ServerReadyResponse:
        """Whether requests should be sent here."""
        return messages.ServerReadyResponse(ready=self._gateway.state.find().is_serving)

    async def model_ready(
        self, request: messages.ModelReadyRequest, _context: handlers.Context
    ) -> messages.ModelReadyResponse:
        """Whether requests for this model should be sent here. No model that is not served is ready."""
        is_served = inference.is_served(self._gateway.model, request.name, request.version)
        return messages.ModelReadyResponse(ready=is_served and self._gateway.state.find().is_serving)

    async def server_metadata(
        self, _request: messages.ServerMetadataRequest, _context: handlers.Context
    ) -> messages.ServerMetadataResponse:
        """Name and version."""
        return messages.ServerMetadataResponse(name=_SERVER_NAME, version=self._gateway.version)

    async def model_metadata(
        self, request: messages.ModelMetadataRequest, _context: handlers.Context
    ) -> messages.ModelMetadataResponse:
        """The model's tensors."""
        inference.check_served(self._gateway.model, request.name, request.version)
        response = messages.ModelMetadataResponse(
            name=self._gateway.model.name, versions=[inference.VERSION], platform=_SERVER_NAME
        )
        for name, datatype in (
            (inference.TEXT_INPUT, "BYTES"),
            (inference.STREAM, "BOOL"),
            (inference.SAMPLING_PARAMETERS, "BYTES"),
            (inference.EXCLUDE_INPUT, "BOOL"),
        ):
            response.inputs.add(name=name, datatype=datatype, shape=[1])
        response.outputs.add(name=inference.TEXT_OUTPUT, datatype="BYTES", shape=[1])
        return response

    async def model_infer(
        self, request: messages.ModelInferRequest, context: handlers.Context
    ) -> messages.ModelInferResponse:
        """Answer one request at once."""
        responses: list[messages.ModelInferResponse] = []

        async def keep(response: messages.ModelInferResponse) -> None:
            responses.append(response)

        await self._infer(request, keep, context, may_stream=False)
        return responses[-1]

    async def model_stream_infer(
        self, requests: AsyncIterator[messages.ModelInferRequest], context: handlers.Context
    ) -> None:
        """Answer requests as they come. One that fails is told so, and the others go on."""
        turn, room = asyncio.Lock(), asyncio.Semaphore(_MAX_OPEN_REQUESTS)

        async def write(response: messages.ModelStreamInferResponse) -> None:
            async with turn:
                await context.write(response)

        async def answer(request: messages.ModelInferRequest) -> None:
            try:
                await self._infer_in_stream(request, write, context)
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await room.acquire()
                    group.create_task(answer(request))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _infer_in_stream(
        self, request: messages.ModelInferRequest, write: handlers.Write, context: handlers.Context
    ) -> None:
        async def pass_on(response: messages.ModelInferResponse) -> None:
            await write(messages.ModelStreamInferResponse(infer_response=response))

        try:
            await self._infer(request, pass_on, context, may_stream=True)
        except handlers.CallerGoneError:
            raise
        except Exception as error:
            if not isinstance(error, RequestError):
                logger.error("unexpected error in a stream peer=%s", context.peer(), exc_info=error)
            failed = messages.ModelStreamInferResponse(error_message=to_status(error).message)
            failed.infer_response.id = request.id
            await write(failed)

    async def _infer(
        self,
        request: messages.ModelInferRequest,
        write: inference.Write,
        context: handlers.Context,
        *,
        may_stream: bool,
    ) -> None:
        inference.check_served(self._gateway.model, request.model_name, request.model_version)
        asked = inference.read(request)
        if asked.is_streamed and not may_stream:
            raise InvalidArgumentError(inference.STREAM, "is true: call ModelStreamInfer for a streamed answer")
        answer = inference.Answer(request, asked, write)
        remaining_s = asked.time_remaining_s(context.time_remaining())
        try:
            await self._gateway.generator.answer(asked.request, answer.take, time_remaining_s=remaining_s)
        except InvalidArgumentError as error:
            raise inference.in_callers_words(error) from error
