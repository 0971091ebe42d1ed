"""Runs a gateway process: `python -m scheduler_service.gateway --help`."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pagewire.ipc.logs import LogFormat, configure_logging
from pagewire.ipc.supervision import Heart
from pagewire.ipc.tracing import TracingError, open_tracer
from scheduler_service.gateway.config import (
    COMPRESSIONS,
    DEFAULT_DRAIN_TIMEOUT_S,
    DEFAULT_MAX_CONNECTION_AGE_GRACE_S,
    DEFAULT_MAX_HTTP_CONNECTIONS,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_MAX_RESPONSE_BYTES,
    DEFAULT_RECOVERY_TIMEOUT_S,
    ConnectionConfig,
    GatewayConfig,
)
from scheduler_service.gateway.engines.routing import RoutingPolicy
from scheduler_service.gateway.exceptions import ModelFileError, StartError
from scheduler_service.gateway.handlers import GRPC_LOGGER, CallersWhoLeft
from scheduler_service.gateway.served_model import read_served_model
from scheduler_service.gateway.server import serve
from scheduler_service.gateway.tls import TlsFiles

if TYPE_CHECKING:
    from pagewire.ipc.spans import Tracer


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM, which lets open calls end, or SIGINT, which does not. Returns the exit code."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    configure_logging(flags.process_name, flags.log_level, flags.log_format)
    logging.getLogger(GRPC_LOGGER).addFilter(CallersWhoLeft())
    try:
        config = GatewayConfig(
            model=flags.model,
            model_name=flags.model_name,
            scheduler_addresses=tuple(flags.scheduler_address),
            listen=tuple(flags.listen),
            private_listen=tuple(flags.private_listen),
            health_listen=flags.health_listen,
            connections=_connections(flags),
            tls=_tls(flags),
            api_keys=flags.api_keys,
            curve_keys=flags.curve_keys,
            routing=flags.routing,
            drain_timeout_s=flags.drain_timeout,
            http=flags.http,
            max_http_connections=flags.max_http_connections,
            supervisor_fd=flags.supervisor_fd,
            recovery_timeout_s=flags.recovery_timeout_s,
            trust_request_chat_template=flags.trust_request_chat_template,
            serves_channelz=flags.channelz,
            engine_metrics=flags.engine_metrics,
            log_prompts=flags.log_prompts,
        )
    except ValueError as error:
        parser.error(str(error))
    _allow_many_files()
    try:
        tracer = open_tracer(flags.otlp_endpoint, flags.process_name, os.environ)
        asyncio.run(_run(config, tracer))
    except (ModelFileError, StartError, TracingError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _allow_many_files() -> None:
    """Each engine takes four file descriptors and each connection one: runtimes begin with 1,024, and allow more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: GatewayConfig, tracer: "Tracer | None") -> None:
    heart = Heart(config.supervisor_fd)
    heart.start()
    model = read_served_model(config.model, config.model_name)
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[float] = loop.create_future()

    def request_stop(number: int) -> None:
        if not stop.done():
            stop.set_result(config.drain_timeout_s if number == signal.SIGTERM else 0.0)
        # A second signal ends the process at once.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, request_stop, number)
    try:
        await serve(config, model, stop, _announce, heart, tracer)
    finally:
        if tracer is not None:
            tracer.close()


def _announce(what: str, address: str) -> None:
    print(f"gateway {what} address={address}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler_service.gateway", description="The Pagewire gateway.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF file, or directory with tokenizer.json")
    add("--model-name", required=True, help="name that requests use")
    add(
        "--scheduler-address",
        required=True,
        action="append",
        metavar="ADDRESS",
        help="ZeroMQ address of a scheduler's request socket, or dns+tcp://NAME:PORT for one at each address of a DNS "
        "name; may be repeated",
    )
    add(
        "--routing",
        type=RoutingPolicy,
        choices=tuple(RoutingPolicy),
        default=RoutingPolicy.PREFIX,
        help="which of several engines gets a request; prefix: the one that has most of the prompt cached",
    )
    add("--listen", action="append", default=[], help="HOST:PORT or unix:/path; may be repeated; port 0: any")
    add("--private-listen", action="append", default=[], metavar="unix:/path", help="the same without TLS and keys")
    add("--health-listen", metavar="ADDRESS", help="serve grpc.health.v1 alone here, in plaintext and without keys")
    _add_access_flags(parser)
    _add_connection_flags(parser)
    add("--http", metavar="HOST:PORT", help="serve OpenAI's API, /healthz and /readyz here; default: off")
    add("--max-http-connections", type=int, default=DEFAULT_MAX_HTTP_CONNECTIONS, help="most at once; more get 503")
    add("--drain-timeout", type=float, default=DEFAULT_DRAIN_TIMEOUT_S, help="seconds that open calls have on SIGTERM")
    add("--supervisor-fd", type=int, metavar="N", help="inherited socket to the supervisor")
    add(
        "--recovery-timeout-s",
        type=float,
        default=DEFAULT_RECOVERY_TIMEOUT_S,
        help="seconds that open calls wait for another scheduler when theirs is gone",
    )
    add("--trust-request-chat-template", action="store_true", help="run chat templates that requests bring")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add("--log-format", default=LogFormat.TEXT, choices=tuple(LogFormat), help="json: an object a line")
    add("--process-name", default="gateway", metavar="NAME", help="what JSON logs and traces call this process")
    add("--otlp-endpoint", metavar="URL", help="send traces to this OpenTelemetry collector, over HTTP")
    switch = argparse.BooleanOptionalAction
    add("--log-prompts", action=switch, default=False, help="log what callers ask")
    add("--engine-metrics", action=switch, default=True, help="tell the engine's metrics at /metrics too")
    return parser


def _add_access_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-cert", type=Path, metavar="FILE", help="PEM certificate with its chain, for HOST:PORT addresses")
    add("--tls-key", type=Path, metavar="FILE", help="its private key")
    add("--tls-client-ca", type=Path, metavar="FILE", help="callers must show certificates of these authorities")
    add("--api-keys", type=Path, metavar="FILE", help="callers must send one of these keys")
    add("--curve-keys", type=Path, metavar="DIR", help="keys for a scheduler that is reached over a network")
    add("--channelz", action=argparse.BooleanOptionalAction, default=False, help="serve grpc.channelz.v1")


def _add_connection_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-message-bytes", type=int, default=DEFAULT_MAX_MESSAGE_BYTES, help="largest request")
    add("--max-response-bytes", type=int, default=DEFAULT_MAX_RESPONSE_BYTES, help="largest response message")
    add("--max-connection-age", type=float, metavar="S", help="connections take no calls after so many seconds")
    add(
        "--max-connection-age-grace",
        type=float,
        default=DEFAULT_MAX_CONNECTION_AGE_GRACE_S,
        metavar="S",
        help="seconds that open calls then have",
    )
    add(
        "--share-port", action=argparse.BooleanOptionalAction, default=False, help="other gateways may listen there too"
    )
    add("--compression", default="none", choices=COMPRESSIONS, help="of responses, for callers that take it")


def _tls(flags: argparse.Namespace) -> TlsFiles | None:
    """What the TLS flags say.

    Raises:
        ValueError: one is missing.
    """
    if flags.tls_cert is None and flags.tls_key is None:
        if flags.tls_client_ca is not None:
            raise ValueError("--tls-client-ca: give --tls-cert and --tls-key as well")
        return None
    if flags.tls_cert is None or flags.tls_key is None:
        raise ValueError("--tls-cert and --tls-key: give both or neither")
    return TlsFiles(flags.tls_cert, flags.tls_key, flags.tls_client_ca)


def _connections(flags: argparse.Namespace) -> ConnectionConfig:
    return ConnectionConfig(
        max_message_bytes=flags.max_message_bytes,
        max_response_bytes=flags.max_response_bytes,
        max_connection_age_s=flags.max_connection_age,
        max_connection_age_grace_s=flags.max_connection_age_grace,
        shares_port=flags.share_port,
        compresses=flags.compression == "gzip",
    )


if __name__ == "__main__":
    sys.exit(main())
