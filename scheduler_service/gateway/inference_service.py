"""What does each method of pagewire.v1.InferenceService do?"""

import grpc

from pagewire.ipc.requests import EngineState
from pagewire.v1 import generate_pb2, inference_pb2
from scheduler_service.gateway import handlers
from scheduler_service.gateway.exceptions import InvalidArgumentError, UnknownModelError
from scheduler_service.gateway.generate import answer_generate
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.validation import check_token_ids

SERVICE_NAME: str = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

_ENGINE_STATES = {
    EngineState.STARTING: inference_pb2.ENGINE_STATE_STARTING,
    EngineState.READY: inference_pb2.ENGINE_STATE_READY,
    EngineState.UNAVAILABLE: inference_pb2.ENGINE_STATE_UNAVAILABLE,
}


class InferenceService:
    """The service over one model and one scheduler.

    Args:
        model: the model that requests may name.
        scheduler: runs generations.
        prompts: tokenizes prompts.
        version: of Pagewire, for GetServerInfo.
        max_message_bytes: the server's limit, for GetServerInfo.
    """

    def __init__(
        self,
        model: ServedModel,
        scheduler: SchedulerClient,
        prompts: PromptReader,
        version: str,
        max_message_bytes: int,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._prompts = prompts
        self._version = version
        self._max_message_bytes = max_message_bytes

    def grpc_handler(self) -> grpc.GenericRpcHandler:
        """The methods as gRPC wants them registered."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Generate": handlers.server_streaming(generate_pb2.GenerateRequest, self.generate),
                "Tokenize": handlers.unary(inference_pb2.TokenizeRequest, self.tokenize),
                "Detokenize": handlers.unary(inference_pb2.DetokenizeRequest, self.detokenize),
                "ListModels": handlers.unary(inference_pb2.ListModelsRequest, self.list_models),
                "GetServerInfo": handlers.unary(inference_pb2.GetServerInfoRequest, self.get_server_info),
            },
        )

    async def generate(self, request: generate_pb2.GenerateRequest, context: handlers.Context) -> None:
        """Stream one completion."""
        self._check_model(request.model)
        await answer_generate(
            request, context, model_name=self._model.name, prompts=self._prompts, scheduler=self._scheduler
        )

    async def tokenize(
        self, request: inference_pb2.TokenizeRequest, _context: handlers.Context
    ) -> inference_pb2.TokenizeResponse:
        """Tokenize a prompt as Generate would."""
        self._check_model(request.model)
        match request.WhichOneof("prompt"):
            case "text":
                special = request.add_special_tokens if request.HasField("add_special_tokens") else True
                token_ids = await self._prompts.read_text(request.text, add_special_tokens=special)
            case "chat":
                token_ids = await self._prompts.read_chat(request.chat)
            case _:
                raise InvalidArgumentError("prompt", "is missing: set one of text and chat")
        return inference_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=self._max_model_len)

    async def detokenize(
        self, request: inference_pb2.DetokenizeRequest, _context: handlers.Context
    ) -> inference_pb2.DetokenizeResponse:
        """Decode token ids."""
        self._check_model(request.model)
        check_token_ids(request.token_ids, self._vocab_size, "token_ids")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await self._prompts.read_token_ids(request.token_ids, skip_special_tokens=skip)
        return inference_pb2.DetokenizeResponse(text=text)

    async def list_models(
        self, _request: inference_pb2.ListModelsRequest, _context: handlers.Context
    ) -> inference_pb2.ListModelsResponse:
        """Describe the served model."""
        model = inference_pb2.Model(
            name=self._model.name,
            architecture=self._model.architecture,
            max_model_len=self._max_model_len,
            vocab_size=self._vocab_size,
            has_chat_template=self._model.chat_template is not None,
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def get_server_info(
        self, _request: inference_pb2.GetServerInfoRequest, _context: handlers.Context
    ) -> inference_pb2.GetServerInfoResponse:
        """Describe the processes behind this server."""
        scheduler, status = self._scheduler, self._scheduler.status
        return inference_pb2.GetServerInfoResponse(
            version=self._version,
            gateway_incarnation=scheduler.incarnation.hex(),
            scheduler_incarnation=(scheduler.scheduler_incarnation or b"").hex(),
            engine_state=_ENGINE_STATES[status.state],
            limits=self._server_limits(),
            load=inference_pb2.ServerLoad(
                num_running=status.load.num_running,
                num_waiting=status.load.num_waiting,
                num_free_blocks=status.load.num_free_blocks,
            ),
            progress=inference_pb2.EngineProgress(stage=status.stage, done=status.done, total=status.total),
            detail=status.detail,
        )

    def _server_limits(self) -> inference_pb2.ServerLimits:
        limits = inference_pb2.ServerLimits(max_message_bytes=self._max_message_bytes)
        engine = self._scheduler.status.limits
        if engine is not None:
            limits.max_model_len = engine.max_model_len
            limits.max_num_seqs = engine.max_num_seqs
            limits.max_num_batched_tokens = engine.max_num_batched_tokens
            limits.block_size = engine.block_size
            limits.num_blocks = engine.num_blocks
        return limits

    def _check_model(self, name: str) -> None:
        if name and name != self._model.name:
            raise UnknownModelError(name, self._model.name)

    @property
    def _max_model_len(self) -> int:
        """The engine's limit; what the model's files say before the engine has told."""
        limits = self._scheduler.status.limits
        return limits.max_model_len if limits is not None else self._model.max_model_len

    @property
    def _vocab_size(self) -> int:
        model = self._scheduler.status.model
        return model.vocab_size if model is not None else self._model.tokenizer.vocab_size
