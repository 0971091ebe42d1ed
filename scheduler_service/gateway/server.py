"""How is a gateway put together, bound, and ended?"""

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_reflection.v1alpha import reflection

from pagewire.ipc.supervision import NO_HEART, Heart, ServiceReport
from scheduler_service.gateway.addresses import bind
from scheduler_service.gateway.config import GatewayConfig
from scheduler_service.gateway.exceptions import EngineUnavailableError
from scheduler_service.gateway.generate import Generator
from scheduler_service.gateway.health import HealthReporter
from scheduler_service.gateway.http.app import make_app
from scheduler_service.gateway.http.body import BodyReader
from scheduler_service.gateway.http.health import health_routes
from scheduler_service.gateway.http.protocol import ConnectionLimits
from scheduler_service.gateway.http.server import HttpServer, bind_http
from scheduler_service.gateway.inference_service import SERVICE_NAME, InferenceService
from scheduler_service.gateway.open_calls import OpenCalls
from scheduler_service.gateway.openai.routes import OpenAiApi
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.service_state import ServiceState
from scheduler_service.gateway.supervision import follow_reports, show_progress

logger = logging.getLogger(__name__)

_SERVED_NAMES = (SERVICE_NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME)
# After the streams have been ended: for their last messages to leave.
_LAST_WORDS_S = 1.0
_KEEPALIVE_PERIOD_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MIN_CLIENT_PING_PERIOD_MS = 10_000


async def serve(
    config: GatewayConfig,
    model: ServedModel,
    stop: asyncio.Future[float],
    on_listening: Callable[[str, str], None],
    heart: Heart = NO_HEART,
) -> None:
    """Serve until `stop` has a result: the seconds that open calls then have to end.

    Args:
        config: addresses and limits.
        model: what is served.
        stop: ends the server.
        on_listening: called with "listening" or "http" and each address once it is bound.
        heart: told that the event loop turns; brings the supervisor's reports.
    Raises:
        StartError: an address cannot be used.
    """
    version = importlib.metadata.version("pagewire")
    server = grpc.aio.server(options=_channel_options(config))
    bound = [bind(server, address) for address in config.listen]
    bound_http = bind_http(config.http) if config.http is not None else None
    health = HealthReporter(server)
    calls = OpenCalls()
    scheduler = SchedulerClient(
        config.scheduler_address,
        version,
        model.tokenizer,
        on_state_change=lambda: health.set_serving(state.find().is_serving),
        recovery_timeout_s=config.recovery_timeout_s,
    )
    heart.incarnation = scheduler.incarnation.hex()
    state = ServiceState(scheduler, calls)

    def take_report(report: ServiceReport) -> None:
        state.report = report
        health.set_serving(state.find().is_serving)
        if state.given_up:
            scheduler.end_streams(EngineUnavailableError(f"the engine is unavailable: {state.given_up}"))

    with ThreadPoolExecutor(config.num_tokenizer_threads, thread_name_prefix="tokenizer") as executor:
        prompts = PromptReader(model, executor, trusts_request_templates=config.trust_request_chat_template)
        generator = Generator(model, scheduler, prompts, calls, state)
        service = InferenceService(
            model, generator, scheduler, prompts, calls, state, version, config.max_message_bytes
        )
        server.add_generic_rpc_handlers((service.grpc_handler(),))
        reflection.enable_server_reflection(_SERVED_NAMES, server)
        await server.start()
        http = None
        if bound_http is not None:
            bodies = BodyReader(config.max_message_bytes)
            openai = OpenAiApi(model, generator, prompts, bodies, lambda: service.max_model_len)
            app = make_app([*health_routes(state), *openai.routes()], calls)
            http = HttpServer(bound_http, app, ConnectionLimits(config.max_http_connections))
        tasks = [asyncio.create_task(health.run()), asyncio.create_task(show_progress(heart, calls))]
        if heart.is_supervised:
            follow_reports(heart, take_report)
        for address in bound:
            on_listening("listening", address)
        if http is not None:
            on_listening("http", http.address)

        drain_timeout_s = await stop
        calls.close()
        await health.stop()
        await _drain(calls, drain_timeout_s)
        scheduler.shut_down()
        stops = [server.stop(_LAST_WORDS_S), *([http.stop(_LAST_WORDS_S)] if http is not None else [])]
        await asyncio.gather(*stops)
        for task in tasks:
            task.cancel()


async def _drain(calls: OpenCalls, timeout_s: float) -> None:
    """Let open calls end; those that do not in time are ended with a status that lets them be resumed elsewhere."""
    logger.info("gateway draining open_calls=%d timeout_s=%.1f", calls.num_open, timeout_s)
    if not await calls.wait_for_end(timeout_s):
        logger.warning("gateway cuts open calls num=%d", calls.num_open)


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
