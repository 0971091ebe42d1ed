"""What does a gateway have that every protocol is made of, and which gRPC services does it offer beside its own?"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import grpc

from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.generate import Generator
from scheduler_service.gateway.open_calls import OpenCalls
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.service_state import ServiceState

# Module and class of each service, and the package without which it is not offered.
_SERVICES = (
    ("scheduler_service.gateway.open_inference.service", "OpenInferenceService", None),
    ("scheduler_service.gateway.vllm_engine.service", "VllmEngineService", "smg_grpc_proto"),
)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that services share.

    Attributes:
        model: the model that requests may name.
        generator: answers requests.
        engines: run the requests.
        prompts: tokenizes prompts.
        calls: told of every call that does work.
        state: of the service.
        version: of Pagewire.
    """

    model: ServedModel
    generator: Generator
    engines: EnginePool
    prompts: PromptReader
    calls: OpenCalls
    state: ServiceState
    version: str

    @property
    def max_model_len(self) -> int:
        """The engine's limit; what the model's files say before the engine has told."""
        limits = self.engines.status.limits
        return limits.max_model_len if limits is not None else self.model.max_model_len


def further_services(gateway: Gateway) -> Iterator[tuple[str, grpc.GenericRpcHandler]]:
    """Name and handler of each service for which the packages are installed."""
    for module_name, class_name, needed in _SERVICES:
        if needed is None or find_spec(needed) is not None:
            module: Any = import_module(module_name)
            yield module.SERVICE_NAME, getattr(module, class_name)(gateway).grpc_handler()
