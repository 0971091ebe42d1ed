"""How is a gateway reached? Addresses and channel settings, for both kinds of client."""

import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from pagewire_client.params import RequestOptions

DEFAULT_ADDRESS = "127.0.0.1:50051"

SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text()
"""What every gRPC client of a service should be told: all gateways behind a name take calls in turn, and calls that
none has begun to answer are tried again."""

# Our own retries resume streams, so our channels are not told the retry policy. That leaves gRPC the calls that no
# server began, as their connection was told to go at that moment: they are sent again at once. A restarted gateway is
# to be found again within a second, not after gRPC's default backoff of up to two minutes. The "minimum" is how long a
# connection may take to be made: far gateways with TLS need several round trips. Names are looked up again as soon as a
# connection is lost: by default gRPC waits half a minute, in which a rollout replaces every gateway that it knows.
# A gateway whose machine is gone says nothing: while calls are open it is pinged, as often as gateways allow, and given
# up when no answer comes. Answers are bounded by the server.
_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": json.loads(SERVICE_CONFIG)["loadBalancingConfig"]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Open a channel to "HOST:PORT", "unix:/path" or any gRPC target; without credentials it is plaintext."""
    if credentials is None:
        return grpc.insecure_channel(address, _OPTIONS)
    return grpc.secure_channel(address, credentials, _OPTIONS)


def open_aio_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """The same for asyncio; the caller's event loop must be running."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, _OPTIONS)
    return grpc.aio.secure_channel(address, credentials, _OPTIONS)


def pick_timeout(options: RequestOptions, default_s: float | None) -> float | None:
    """The call's own timeout if it names one (None: no limit), else the client's."""
    return options.get("timeout", default_s)
