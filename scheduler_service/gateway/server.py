"""How is a gateway put together, bound, and ended?"""

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_reflection.v1alpha import reflection

from pagewire.ipc.requests import EngineState
from scheduler_service.gateway.addresses import bind
from scheduler_service.gateway.config import GatewayConfig
from scheduler_service.gateway.health import HealthReporter
from scheduler_service.gateway.inference_service import SERVICE_NAME, InferenceService
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.served_model import ServedModel

logger = logging.getLogger(__name__)

_SERVED_NAMES = (SERVICE_NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME)
# After the streams have been ended: for their last messages to leave.
_LAST_WORDS_S = 1.0
_KEEPALIVE_PERIOD_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MIN_CLIENT_PING_PERIOD_MS = 10_000


async def serve(
    config: GatewayConfig, model: ServedModel, stop: asyncio.Event, on_listening: Callable[[str], None]
) -> None:
    """Serve until `stop` is set, then give open calls some time to end.

    Args:
        config: addresses and limits.
        model: what is served.
        stop: ends the server.
        on_listening: called with each address once it is bound.
    Raises:
        StartError: an address cannot be used.
    """
    version = importlib.metadata.version("pagewire")
    server = grpc.aio.server(options=_channel_options(config))
    bound = [bind(server, address) for address in config.listen]
    health = HealthReporter(server)
    scheduler = SchedulerClient(
        config.scheduler_address,
        version,
        model.tokenizer,
        on_state_change=lambda: health.set_serving(scheduler.status.state is EngineState.READY),
        recovery_timeout_s=config.recovery_timeout_s,
    )
    with ThreadPoolExecutor(config.num_tokenizer_threads, thread_name_prefix="tokenizer") as executor:
        prompts = PromptReader(model, executor, trusts_request_templates=config.trust_request_chat_template)
        service = InferenceService(model, scheduler, prompts, version, config.max_message_bytes)
        server.add_generic_rpc_handlers((service.grpc_handler(),))
        reflection.enable_server_reflection(_SERVED_NAMES, server)
        await server.start()
        health_task = asyncio.create_task(health.run())
        for address in bound:
            on_listening(address)
        await stop.wait()
        logger.info("gateway stopping open_streams=%d grace_s=%.1f", scheduler.num_streams, config.stop_grace_s)
        await health.stop()
        await _stop(server, scheduler, config.stop_grace_s)
        health_task.cancel()


async def _stop(server: grpc.aio.Server, scheduler: SchedulerClient, grace_s: float) -> None:
    """Refuse new calls, let open streams end, and end those that do not with a status that lets them be resumed."""
    stopping = asyncio.create_task(server.stop(grace_s + _LAST_WORDS_S))
    await asyncio.wait([stopping], timeout=grace_s)
    scheduler.shut_down()
    await stopping


def _channel_options(config: GatewayConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # A second server on the same port is a mistake that must be seen.
        ("grpc.so_reuseport", 0),
        # Find out about callers whose machine is gone.
        ("grpc.keepalive_time_ms", _KEEPALIVE_PERIOD_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_CLIENT_PING_PERIOD_MS),
    ]
