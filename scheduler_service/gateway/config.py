"""What can be set for a gateway process?"""

from dataclasses import dataclass
from pathlib import Path

from scheduler_service.gateway.engines.routing import RoutingPolicy
from scheduler_service.gateway.tls import TlsFiles

DEFAULT_MAX_MESSAGE_BYTES = 4 << 20
DEFAULT_MAX_RESPONSE_BYTES = 64 << 20
DEFAULT_DRAIN_TIMEOUT_S = 30.0
DEFAULT_RECOVERY_TIMEOUT_S = 60.0
DEFAULT_MAX_HTTP_CONNECTIONS = 2048
DEFAULT_MAX_CONNECTION_AGE_GRACE_S = 600.0
COMPRESSIONS = ("none", "gzip")


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """How callers' connections are treated.

    A connection older than `max_connection_age_s` (None: any) takes no new calls, and is cut when its open ones have
    not ended within the grace. With `shares_port` other gateways of this user may listen on the same ports.
    """

    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    max_response_bytes: int = DEFAULT_MAX_RESPONSE_BYTES
    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float = DEFAULT_MAX_CONNECTION_AGE_GRACE_S
    shares_port: bool = False
    compresses: bool = False

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-message-bytes", self.max_message_bytes),
            ("--max-response-bytes", self.max_response_bytes),
        ):
            if value < 1:
                raise ValueError(f"{flag}: {value} is below 1")
        if self.max_connection_age_s is not None and not 0 < self.max_connection_age_s < float("inf"):
            raise ValueError(f"--max-connection-age: {self.max_connection_age_s} is no number of seconds above 0")
        if not 0 <= self.max_connection_age_grace_s < float("inf"):
            raise ValueError(
                f"--max-connection-age-grace: {self.max_connection_age_grace_s} is no number of seconds, 0 or more"
            )


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of one gateway process.

    `model` is a GGUF file or a model directory; `model_name` what requests call it. `listen` are gRPC addresses
    ("host:port" or "unix:/path"; port 0 takes a free one), `scheduler_addresses` ZeroMQ ones. `tls` holds for the
    "host:port" ones, `api_keys` (a key file) for all. `private_listen` are unix sockets that only this user can reach,
    and ask for neither; at `health_listen` everybody gets grpc.health.v1, and nothing else. `drain_timeout_s` is how
    long open calls may go on after SIGTERM, `recovery_timeout_s` how long they wait for an engine when theirs is gone;
    `routing` says which of several engines gets a request. `http` is where HTTP is served ("host:port"), to
    `max_http_connections` at once. `supervisor_fd` is the inherited socket to the supervisor. `curve_keys` is the
    directory with the keys for schedulers on other machines.
    `engine_metrics`: /metrics tells the engine's part too. `log_prompts`: prompts go to the log.
    """

    model: Path
    model_name: str
    scheduler_addresses: tuple[str, ...]
    listen: tuple[str, ...] = ()
    private_listen: tuple[str, ...] = ()
    health_listen: str | None = None
    connections: ConnectionConfig = ConnectionConfig()
    tls: TlsFiles | None = None
    api_keys: Path | None = None
    curve_keys: Path | None = None
    num_tokenizer_threads: int = 2
    drain_timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S
    recovery_timeout_s: float = DEFAULT_RECOVERY_TIMEOUT_S
    http: str | None = None
    max_http_connections: int = DEFAULT_MAX_HTTP_CONNECTIONS
    routing: RoutingPolicy = RoutingPolicy.PREFIX
    supervisor_fd: int | None = None
    trust_request_chat_template: bool = False
    serves_channelz: bool = False
    engine_metrics: bool = True
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.listen and not self.private_listen:
            raise ValueError("--listen: give at least one address")
        if self.max_http_connections < 1:
            raise ValueError(f"--max-http-connections: {self.max_http_connections} is below 1")
        if not 0 <= self.drain_timeout_s < float("inf"):
            raise ValueError(f"--drain-timeout: {self.drain_timeout_s} is no number of seconds, 0 or more")
        if self.recovery_timeout_s < 0:
            raise ValueError(f"--recovery-timeout-s: {self.recovery_timeout_s} is below 0")
        if not self.model_name:
            raise ValueError("--model-name: is empty")
        for address in self.private_listen:
            if not address.startswith("unix:"):
                raise ValueError(f"--private-listen: {address} is no unix:/path, which files can protect")
