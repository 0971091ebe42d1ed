"""What can be set for a gateway process?"""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_MAX_MESSAGE_BYTES = 4 << 20
DEFAULT_DRAIN_TIMEOUT_S = 30.0
DEFAULT_RECOVERY_TIMEOUT_S = 60.0
DEFAULT_MAX_HTTP_CONNECTIONS = 2048


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of one gateway process.

    `model` is a GGUF file or a model directory; `model_name` what requests call it. `listen` are gRPC addresses
    ("host:port" or "unix:/path"; port 0 takes a free one), `scheduler_address` a ZeroMQ one. `drain_timeout_s` is how
    long open calls may go on after SIGTERM, `recovery_timeout_s` how long they wait for another scheduler when theirs
    is gone. `http` is where HTTP is served ("host:port"), to `max_http_connections` at once. `supervisor_fd` is the
    inherited socket to the supervisor.
    """

    model: Path
    model_name: str
    scheduler_address: str
    listen: tuple[str, ...]
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    num_tokenizer_threads: int = 2
    drain_timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S
    recovery_timeout_s: float = DEFAULT_RECOVERY_TIMEOUT_S
    http: str | None = None
    max_http_connections: int = DEFAULT_MAX_HTTP_CONNECTIONS
    supervisor_fd: int | None = None
    trust_request_chat_template: bool = False

    def __post_init__(self) -> None:
        if not self.listen:
            raise ValueError("--listen: give at least one address")
        if self.max_message_bytes < 1:
            raise ValueError(f"--max-message-bytes: {self.max_message_bytes} is below 1")
        if self.max_http_connections < 1:
            raise ValueError(f"--max-http-connections: {self.max_http_connections} is below 1")
        if not 0 <= self.drain_timeout_s < float("inf"):
            raise ValueError(f"--drain-timeout: {self.drain_timeout_s} is no number of seconds, 0 or more")
        if self.recovery_timeout_s < 0:
            raise ValueError(f"--recovery-timeout-s: {self.recovery_timeout_s} is below 0")
        if not self.model_name:
            raise ValueError("--model-name: is empty")
