"""What does each method of pagewire.v1.InferenceService do?"""

import grpc

from pagewire.ipc.requests import EngineState, Load
from pagewire.ipc.supervision import ProcessReport, ProcessState
from pagewire.v1 import generate_pb2, inference_pb2
from scheduler_service.gateway import handlers
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.gateway import Gateway
from scheduler_service.gateway.validation import check_token_ids

SERVICE_NAME: str = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

_ENGINE_STATES = {
    EngineState.STARTING: inference_pb2.ENGINE_STATE_STARTING,
    EngineState.READY: inference_pb2.ENGINE_STATE_READY,
    EngineState.UNAVAILABLE: inference_pb2.ENGINE_STATE_UNAVAILABLE,
    EngineState.DRAINING: inference_pb2.ENGINE_STATE_DRAINING,
}

_PROCESS_STATES = {
    ProcessState.STARTING: inference_pb2.PROCESS_STATE_STARTING,
    ProcessState.IDLE: inference_pb2.PROCESS_STATE_IDLE,
    ProcessState.BUSY: inference_pb2.PROCESS_STATE_BUSY,
    ProcessState.DRAINING: inference_pb2.PROCESS_STATE_DRAINING,
    ProcessState.HUNG: inference_pb2.PROCESS_STATE_HUNG,
    ProcessState.DEAD: inference_pb2.PROCESS_STATE_DEAD,
}


class InferenceService:
    """The service of a gateway.

    Args:
        gateway: what answers are made of.
        max_message_bytes: the server's limit, for GetServerInfo.
    """

    def __init__(self, gateway: Gateway, max_message_bytes: int) -> None:
        self._gateway = gateway
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
        await self._gateway.generator.answer(request, context.write, time_remaining_s=context.time_remaining())

    async def tokenize(
        self, request: inference_pb2.TokenizeRequest, _context: handlers.Context
    ) -> inference_pb2.TokenizeResponse:
        """Tokenize a prompt as Generate would."""
        self._gateway.model.check_name(request.model)
        with self._gateway.calls.one():
            match request.WhichOneof("prompt"):
                case "text":
                    special = request.add_special_tokens if request.HasField("add_special_tokens") else True
                    token_ids = await self._gateway.prompts.read_text(request.text, add_special_tokens=special)
                case "chat":
                    token_ids = await self._gateway.prompts.read_chat(request.chat)
                case _:
                    raise InvalidArgumentError("prompt", "is missing: set one of text and chat")
        return inference_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=self._gateway.max_model_len)

    async def detokenize(
        self, request: inference_pb2.DetokenizeRequest, _context: handlers.Context
    ) -> inference_pb2.DetokenizeResponse:
        """Decode token ids."""
        self._gateway.model.check_name(request.model)
        check_token_ids(request.token_ids, self._vocab_size, "token_ids")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        with self._gateway.calls.one():
            text = await self._gateway.prompts.read_token_ids(request.token_ids, skip_special_tokens=skip)
        return inference_pb2.DetokenizeResponse(text=text)

    async def list_models(
        self, _request: inference_pb2.ListModelsRequest, _context: handlers.Context
    ) -> inference_pb2.ListModelsResponse:
        """Describe the served model."""
        model = inference_pb2.Model(
            name=self._gateway.model.name,
            architecture=self._gateway.model.architecture,
            max_model_len=self._gateway.max_model_len,
            vocab_size=self._vocab_size,
            has_chat_template=self._gateway.model.chat_template is not None,
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def get_server_info(
        self, _request: inference_pb2.GetServerInfoRequest, _context: handlers.Context
    ) -> inference_pb2.GetServerInfoResponse:
        """Describe the processes behind this server."""
        engines, status = self._gateway.engines, self._gateway.engines.status
        incarnations = engines.scheduler_incarnations
        found, report = self._gateway.state.find(), self._gateway.state.report
        engine_state, stage = self._gateway.state.engine_state()
        return inference_pb2.GetServerInfoResponse(
            version=self._gateway.version,
            gateway_incarnation=engines.incarnation.hex(),
            scheduler_incarnation=incarnations[0].hex() if len(incarnations) == 1 else "",
            engine_state=_ENGINE_STATES[engine_state],
            limits=self._server_limits(),
            load=_load(status.load),
            progress=inference_pb2.EngineProgress(stage=stage, done=status.done, total=status.total),
            detail=self._gateway.state.given_up or status.detail,
            processes=[_process(process) for process in report.processes] if report is not None else (),
            state=_PROCESS_STATES[found.state],
            state_reason=found.reason,
            engines=map(_engine, engines.engines),
        )

    def _server_limits(self) -> inference_pb2.ServerLimits:
        limits = inference_pb2.ServerLimits(max_message_bytes=self._max_message_bytes)
        engine = self._gateway.engines.status.limits
        if engine is not None:
            limits.max_model_len = engine.max_model_len
            limits.max_num_seqs = engine.max_num_seqs
            limits.max_num_batched_tokens = engine.max_num_batched_tokens
            limits.block_size = engine.block_size
            limits.num_blocks = engine.num_blocks
        return limits

    @property
    def _vocab_size(self) -> int:
        model = self._gateway.engines.status.model
        return model.vocab_size if model is not None else self._gateway.model.tokenizer.vocab_size


def _engine(engine: Engine) -> inference_pb2.Engine:
    return inference_pb2.Engine(
        address=engine.address,
        scheduler_incarnation=(engine.scheduler_incarnation or b"").hex(),
        state=_ENGINE_STATES[engine.status.state],
        detail=engine.status.detail or engine.status.stage,
        load=_load(engine.status.load),
        num_streams=engine.num_streams,
    )


def _load(load: Load) -> inference_pb2.ServerLoad:
    return inference_pb2.ServerLoad(
        num_running=load.num_running, num_waiting=load.num_waiting, num_free_blocks=load.num_free_blocks
    )


def _process(report: ProcessReport) -> inference_pb2.Process:
    return inference_pb2.Process(
        name=report.name,
        state=_PROCESS_STATES[report.state],
        detail=report.detail,
        pid=report.pid,
        incarnation=report.incarnation,
        num_restarts=report.num_restarts,
        num_steps=report.num_steps,
        last_step_age_ms=None if report.step_age_s is None else round(report.step_age_s * 1000),
    )
