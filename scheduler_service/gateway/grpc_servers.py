"""Which gRPC servers does a gateway run, and who may reach what on them?

public    what callers use: TLS on host:port, API keys, every service
private   a unix socket in a directory that only this user may enter: neither TLS nor keys, for the supervisor
health    for probes that have neither certificate nor key: plaintext, grpc.health.v1 alone
"""

import asyncio
from collections.abc import Iterator

import grpc

from scheduler_service.gateway.addresses import bind
from scheduler_service.gateway.auth.interceptor import KeyInterceptor
from scheduler_service.gateway.auth.keyring import Keyring
from scheduler_service.gateway.config import ConnectionConfig, GatewayConfig
from scheduler_service.gateway.errors import refusing_handler
from scheduler_service.gateway.exceptions import UnknownMethodError
from scheduler_service.gateway.health import HEALTH_NAME
from scheduler_service.gateway.introspection import REFLECTION_NAME, channelz_handler, reflection_handler
from scheduler_service.gateway.tls import Certificates

Options = list[tuple[str, int]]

_KEEPALIVE_PERIOD_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# Clients may ping every ten seconds, calls open or not; half of that leaves room for pings that arrive unevenly.
_PING_OPTIONS: Options = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]
_LOW_COMPRESSION = 1
# For TLS and HTTP/2's own greeting: whoever does not get through them cannot hold a connection.
_HANDSHAKE_TIMEOUT_MS = 10_000
# Open at once on one connection, each of which costs some 20 kB; further ones wait at the caller.
_MAX_STREAMS = 4096
# Calls of all connections that no handler has taken up yet. gRPC cancels calls at random from the first number on, and
# all from the second; those that somebody floods it with are among them, and so are everybody's, so there is room.
_MAX_PENDING_CALLS = (8192, 16_384)


class GrpcServers:
    """The servers that a gateway's settings ask for, each bound to its addresses.

    Args:
        config: addresses and limits.
        certificates: of the public server; without them it is plaintext.
        keyring: keys that the public server asks for; without it anyone may call.
        observer: sees every call of the public and the private server.
    Raises:
        StartError: an address cannot be used.
    """

    def __init__(
        self,
        config: GatewayConfig,
        certificates: Certificates | None,
        keyring: Keyring | None,
        observer: grpc.aio.ServerInterceptor,
    ) -> None:
        self._config = config
        checks = [KeyInterceptor(keyring)] if keyring is not None else []
        self._public = grpc.aio.server(interceptors=[observer, *checks], options=_public_options(config.connections))
        private_options = [*_message_options(config.connections), *_PING_OPTIONS]
        self._private = grpc.aio.server(interceptors=[observer], options=private_options)
        self._health = grpc.aio.server(options=_connection_options(shares_port=False))
        shares_port = config.connections.shares_port
        credentials = certificates.grpc_credentials if certificates is not None else None
        self.private = [bind(self._private, address) for address in config.private_listen]
        self.public = [bind(self._public, address, credentials, shares_port) for address in config.listen]
        self.health = [bind(self._health, config.health_listen)] if config.health_listen is not None else []

    @property
    def for_health(self) -> tuple[grpc.aio.Server, ...]:
        """The servers that answer for health."""
        return self._public, self._private, self._health

    def add(self, *handlers: grpc.GenericRpcHandler) -> None:
        """Serve methods."""
        for server in (self._public, self._private):
            server.add_generic_rpc_handlers(handlers)

    async def start(self, service_names: tuple[str, ...]) -> None:
        """Serve what was added, and what describes it.

        Args:
            service_names: the services that were added.
        Raises:
            StartError: a package is missing that the settings ask for.
        """
        names = [*service_names, HEALTH_NAME, REFLECTION_NAME]
        if self._config.serves_channelz:
            name, channelz = channelz_handler()
            names.append(name)
            self._public.add_generic_rpc_handlers((channelz,))
        self._public.add_generic_rpc_handlers((reflection_handler(names),))
        for server in self.for_health:
            # The first handler that knows a method has it, so this is the last.
            server.add_generic_rpc_handlers((_UnknownMethods(),))
            await server.start()

    async def dismiss(self, grace_s: float) -> None:
        """Close the public addresses, and tell every connection there to take further calls elsewhere.

        Callers would otherwise keep to this gateway, which refuses them, for as long as one of their calls is open.

        Args:
            grace_s: what open calls have to end, unless `stop` gives them less.
        """
        await self._public.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and end those that are open after the grace."""
        await asyncio.gather(*(server.stop(grace_s) for server in self.for_health))


class _UnknownMethods(grpc.GenericRpcHandler):
    """Refuses whatever reaches it."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[object, object]":
        return refusing_handler(UnknownMethodError(handler_call_details.method))


def _public_options(config: ConnectionConfig) -> Options:
    # A level leaves the algorithm to what the caller takes; a given algorithm would be used whether it takes it or not.
    compression = [("grpc.default_compression_level", _LOW_COMPRESSION)] if config.compresses else []
    return [*_message_options(config), *_connection_options(config.shares_port), *_age_options(config), *compression]


def _message_options(config: ConnectionConfig) -> Options:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_response_bytes),
    ]


def _connection_options(shares_port: bool) -> Options:
    return [
        # Unless it is asked for, a second server on the same port is a mistake that must be seen.
        ("grpc.so_reuseport", int(shares_port)),
        # Find out about callers whose machine is gone.
        ("grpc.keepalive_time_ms", _KEEPALIVE_PERIOD_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        *_PING_OPTIONS,
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS[0]),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS[1]),
    ]


def _age_options(config: ConnectionConfig) -> Iterator[tuple[str, int]]:
    if config.max_connection_age_s is not None:
        yield "grpc.max_connection_age_ms", max(1, round(config.max_connection_age_s * 1000))
        yield "grpc.max_connection_age_grace_ms", round(config.max_connection_age_grace_s * 1000)
