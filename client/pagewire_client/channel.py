"""How is a gateway reached? Addresses and channel settings, for both kinds of client."""

from collections.abc import Sequence

import grpc
import grpc.aio

from pagewire_client.params import RequestOptions

DEFAULT_ADDRESS = "127.0.0.1:50051"

# Our own retries resume streams, so gRPC's are off; a restarted gateway is to be found again within
# a second, not after gRPC's default backoff of up to two minutes. Answers are bounded by the server, not here.
_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)

# A name, or one of gRPC's own lists, stands for all gateways behind it.
_MANY_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_ALL_IN_TURN = ("grpc.lb_policy_name", "round_robin")


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Open a channel to "HOST:PORT", "unix:/path" or any gRPC target; without credentials it is plaintext."""
    if credentials is None:
        return grpc.insecure_channel(address, _options(address))
    return grpc.secure_channel(address, credentials, _options(address))


def open_aio_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """The same for asyncio; the caller's event loop must be running."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, _options(address))
    return grpc.aio.secure_channel(address, credentials, _options(address))


def pick_timeout(options: RequestOptions, default_s: float | None) -> float | None:
    """The call's own timeout if it names one (None: no limit), else the client's."""
    return options.get("timeout", default_s)


def _options(address: str) -> Sequence[tuple[str, int | str]]:
    return (*_OPTIONS, _ALL_IN_TURN) if address.startswith(_MANY_SCHEMES) else _OPTIONS
