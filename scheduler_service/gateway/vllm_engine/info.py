"""What does vLLM's protocol tell of the model, the server and its load?"""

import time
from datetime import UTC, datetime

from smg_grpc_proto.generated import vllm_engine_pb2

from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.served_model import ServedModel

_SERVER_TYPE = "vllm-grpc"
# Routers take the tokenizer from this path, or from the Hub if there is nothing there, and only then from GetTokenizer.
# The Hub may have another one under this model's name, or be out of reach, so this is a path with no tokenizer.
_TOKENIZER_PATH = "/dev/null"


class EngineInfo:
    """Describes one model and its engines.

    Args:
        model: what is served.
        engines: for what they say of themselves.
        version: of Pagewire.
    """

    def __init__(self, model: ServedModel, engines: EnginePool, version: str) -> None:
        self._model = model
        self._engines = engines
        self._version = version
        self._started_s = time.monotonic()
        self.last_request_s = 0.0
        """When the last generation was asked for, in Unix time."""

    def model_info(self) -> vllm_engine_pb2.GetModelInfoResponse:
        """The model."""
        model, engine, limits = self._model, self._engines.status.model, self._engines.status.limits
        max_model_len = limits.max_model_len if limits is not None else model.max_model_len
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=model.name,
            is_generation=True,
            max_context_length=max_model_len,
            vocab_size=engine.vocab_size if engine is not None else model.tokenizer.vocab_size,
            served_model_name=model.name,
            tokenizer_path=_TOKENIZER_PATH,
            model_type=model.architecture,
            architectures=model.config.get("architectures", ()),
            eos_token_ids=engine.eos_token_ids if engine is not None else (),
            pad_token_id=self._special_id("pad_token"),
            bos_token_id=self._special_id("bos_token"),
            max_req_input_len=max(max_model_len - 1, 0),
        )

    def server_info(self) -> vllm_engine_pb2.GetServerInfoResponse:
        """The server."""
        load, limits = self._engines.status.load, self._engines.status.limits
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=load.num_running + load.num_waiting,
            last_receive_timestamp=self.last_request_s,
            uptime_seconds=time.monotonic() - self._started_s,
            server_type=_SERVER_TYPE,
            data_parallel_size=1,
            block_size=limits.block_size if limits is not None else 0,
            max_num_seqs=limits.max_num_seqs if limits is not None else 0,
        )

    def loads(self) -> vllm_engine_pb2.GetLoadsResponse:
        """The scheduler's queues and blocks at its last report."""
        load, limits = self._engines.status.load, self._engines.status.limits
        described = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=load.num_running,
            num_waiting_reqs=load.num_waiting,
            num_total_reqs=load.num_running + load.num_waiting,
        )
        if limits is not None:
            num_used_blocks = limits.num_blocks - load.num_free_blocks
            described.num_used_tokens = num_used_blocks * limits.block_size
            described.max_total_num_tokens = limits.num_blocks * limits.block_size
            described.token_usage = num_used_blocks / limits.num_blocks
            described.utilization = load.num_running / limits.max_num_seqs
            described.max_running_requests = limits.max_num_seqs
        return vllm_engine_pb2.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(), version=self._version, dp_rank_count=1, loads=[described]
        )

    def _special_id(self, role: str) -> int:
        """0 where there is no such token: the protocol cannot say so."""
        token = self._model.tokenizer.special_tokens.get(role)
        return (self._model.tokenizer.token_id(token) if token is not None else None) or 0
