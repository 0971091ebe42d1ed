"""How is a gateway put together, bound, and ended?"""

import asyncio
import gc
import importlib.metadata
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.routing import Route

from pagewire.ipc.supervision import NO_HEART, Heart, ServiceReport
from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.call_counter import CallCounter
from scheduler_service.gateway.call_observer import CallObserver
from scheduler_service.gateway.config import GatewayConfig
from scheduler_service.gateway.engines.chooser import Chooser
from scheduler_service.gateway.engines.discovery import check_addresses
from scheduler_service.gateway.engines.engine_socket import Connector
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.exceptions import EngineUnavailableError
from scheduler_service.gateway.gateway import Gateway, further_services
from scheduler_service.gateway.generate import Generator, StartSpan
from scheduler_service.gateway.grpc_servers import GrpcServers
from scheduler_service.gateway.health import HealthReporter
from scheduler_service.gateway.http.app import make_app
from scheduler_service.gateway.http.body import BodyReader
from scheduler_service.gateway.http.health import health_routes
from scheduler_service.gateway.http.metrics import HttpObserver, metrics_routes
from scheduler_service.gateway.http.protocol import ConnectionLimits
from scheduler_service.gateway.http.server import HttpServer, bind_http
from scheduler_service.gateway.inference_service import SERVICE_NAME, InferenceService
from scheduler_service.gateway.metrics import GatewayMetrics
from scheduler_service.gateway.open_calls import OpenCalls
from scheduler_service.gateway.openai.routes import OpenAiApi
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.served_model import ServedModel
from scheduler_service.gateway.service_state import ServiceState
from scheduler_service.gateway.supervision import follow_reports, show_progress
from scheduler_service.gateway.tls import Certificates
from scheduler_service.gateway.watched_files import keep_fresh

if TYPE_CHECKING:
    from pagewire.ipc.spans import Tracer

logger = logging.getLogger(__name__)

# What starts so stays on this machine.
_LOCAL_ADDRESSES = ("unix:", "127.", "localhost:", "[::1]:")
# After the streams have been ended: for their last messages to leave.
_LAST_WORDS_S = 3.0


async def serve(
    config: GatewayConfig,
    model: ServedModel,
    stop: asyncio.Future[float],
    on_listening: Callable[[str, str], None],
    heart: Heart = NO_HEART,
    tracer: "Tracer | None" = None,
) -> None:
    """Serve until `stop` has a result: the seconds that open calls then have to end.

    Args:
        config: addresses and limits.
        model: what is served.
        stop: ends the server.
        on_listening: called with "listening", "health" or "http" and each address once it is bound; private addresses
            come first.
        heart: told that the event loop turns; brings the supervisor's reports.
        tracer: for requests, if they are traced.
    Raises:
        StartError: an address, a certificate or a key file cannot be used.
    """
    certificates = Certificates(config.tls) if config.tls is not None else None
    keyring = Keyring(config.api_keys) if config.api_keys is not None else None
    if keyring is not None and certificates is None:
        _warn_of_plaintext((*config.listen, *filter(None, [config.http])))
    registry = CollectorRegistry(auto_describe=False)
    counter = CallCounter(registry)
    servers = GrpcServers(config, certificates, keyring, CallObserver(counter, traces=tracer is not None))
    bound_http = bind_http(config.http, config.connections.shares_port) if config.http is not None else None
    health = HealthReporter(servers.for_health)
    with ThreadPoolExecutor(config.num_tokenizer_threads, thread_name_prefix="tokenizer") as executor:
        gateway = _make_gateway(config, model, health, executor, tracer)
        heart.incarnation = gateway.engines.incarnation.hex()
        service = InferenceService(gateway, config.connections.max_message_bytes)
        further = dict(further_services(gateway))
        servers.add(service.grpc_handler(), *further.values())
        health.add_services(further)
        await servers.start((SERVICE_NAME, *further))
        http = None
        if bound_http is not None:
            observers = [Middleware(HttpObserver, counter=counter, traces=tracer is not None)]
            app = make_app(_http_routes(config, gateway, registry), gateway.calls, keyring, observers)
            tls = certificates.ssl_context() if certificates is not None else None
            http = HttpServer(bound_http, app, ConnectionLimits(config.max_http_connections), tls)
        tasks = [
            asyncio.create_task(show_progress(heart, gateway.calls)),
            asyncio.create_task(keep_fresh([part for part in (certificates, keyring) if part is not None])),
        ]
        if heart.is_supervised:
            follow_reports(heart, partial(_take_report, gateway, health))
        # What lives now lives on: a collection of garbage that looks at it again holds up all streams for long.
        gc.collect()
        gc.freeze()
        _announce(servers, http, on_listening)

        await _end(gateway, health, servers, http, await stop)
        for task in tasks:
            task.cancel()


def _warn_of_plaintext(addresses: Iterable[str]) -> None:
    for address in addresses:
        if not address.startswith(_LOCAL_ADDRESSES):
            logger.warning("API keys cross the network unencrypted, give --tls-cert and --tls-key address=%s", address)


def _announce(servers: GrpcServers, http: HttpServer | None, on_listening: Callable[[str, str], None]) -> None:
    for address in (*servers.private, *servers.public):
        on_listening("listening", address)
    for address in servers.health:
        on_listening("health", address)
    if http is not None:
        on_listening("http", http.address)


def _make_gateway(
    config: GatewayConfig, model: ServedModel, health: HealthReporter, executor: Executor, tracer: "Tracer | None"
) -> Gateway:
    version = importlib.metadata.version("pagewire")
    calls = OpenCalls()
    check_addresses(config.scheduler_addresses, config.curve_keys)
    engines = EnginePool(
        config.scheduler_addresses,
        Connector(version, model.name, config.curve_keys),
        model.tokenizer,
        on_state_change=lambda: health.set_serving(state.find().is_serving),
        chooser=Chooser(config.routing),
        recovery_timeout_s=config.recovery_timeout_s,
    )
    state = ServiceState(engines, calls)
    prompts = PromptReader(model, executor, trusts_request_templates=config.trust_request_chat_template)
    start_span = _span_starter(tracer, model.name)
    generator = Generator(model, engines, prompts, calls, state, start_span, logs_prompts=config.log_prompts)
    return Gateway(model, generator, engines, prompts, calls, state, version)


def _http_routes(config: GatewayConfig, gateway: Gateway, registry: CollectorRegistry) -> list[Route]:
    metrics = GatewayMetrics(registry, gateway, with_engine=config.engine_metrics)
    openai = OpenAiApi(gateway, BodyReader(config.connections.max_message_bytes))
    return [*health_routes(gateway.state), *metrics_routes(metrics), *openai.routes()]


def _take_report(gateway: Gateway, health: HealthReporter, report: ServiceReport) -> None:
    """The supervisor tells of all processes."""
    gateway.state.report = report
    health.set_serving(gateway.state.find().is_serving)
    if gateway.state.given_up:
        gateway.engines.end_streams(EngineUnavailableError(f"the engine is unavailable: {gateway.state.given_up}"))


def _span_starter(tracer: "Tracer | None", model_name: str) -> StartSpan | None:
    if tracer is None:
        return None
    from scheduler_service.gateway.generate_span import GenerateSpan  # noqa: PLC0415 (imports OpenTelemetry)

    return lambda request: GenerateSpan.start(tracer, request, model_name)


async def _end(
    gateway: Gateway, health: HealthReporter, servers: GrpcServers, http: HttpServer | None, drain_timeout_s: float
) -> None:
    """Take no new calls, let open ones end, and close what was bound."""
    gateway.calls.close()
    health.stop()
    dismissal = asyncio.create_task(servers.dismiss(drain_timeout_s + _LAST_WORDS_S))
    await _drain(gateway.calls, drain_timeout_s)
    gateway.engines.shut_down()
    stops = [servers.stop(_LAST_WORDS_S), *([http.stop(_LAST_WORDS_S)] if http is not None else [])]
    await asyncio.gather(dismissal, *stops)


async def _drain(calls: OpenCalls, timeout_s: float) -> None:
    """Let open calls end; those that do not in time are ended with a status that lets them be resumed elsewhere."""
    logger.info("gateway draining open_calls=%d timeout_s=%.1f", calls.num_open, timeout_s)
    if not await calls.wait_for_end(timeout_s):
        logger.warning("gateway cuts open calls num=%d", calls.num_open)
