"""How does a command reach a service? A running one, waited for with a progress bar, or a private one of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars

from pagewire_client.access import Tls
from pagewire_client.client import Client
from pagewire_client.errors import PagewireError, UnavailableError
from pagewire_client.gateways import split_addresses
from pagewire_client.local_service import LocalService
from pagewire_client.retry import RetryPolicy
from pagewire_client.types import EngineState, Progress


class AccessOptions(TypedDict):
    """What clients are told of keys and TLS; None: what the environment says."""

    api_key: str | None
    tls: Tls | None


FROM_ENVIRONMENT = AccessOptions(api_key=None, tls=None)


@contextmanager
def service_addresses(
    addresses: Sequence[str],
    local: str | None,
    flags: Sequence[str] = (),
    access: AccessOptions = FROM_ENVIRONMENT,
) -> Iterator[list[str]]:
    """Give the addresses of a service that is ready: at least one of each gateway that is known.

    Args:
        addresses: of the running service to use, unless `local` is given.
        local: model of a private service to start and to stop at the end.
        flags: supervisor flags for the private service.
        access: to the running service.

    Raises:
        PagewireError: there is none, or it does not start.
    """
    if local is None:
        for address in addresses:
            _wait_until_ready(address, access)
        yield list(addresses)
        return
    with LocalService(local, flags=["--log-level", "warning", *flags]) as service:
        service.wait_until_ready()
        yield service.addresses


@contextmanager
def connect(address: str, local: str | None, access: AccessOptions) -> Iterator[Client]:
    """Give a client of a service that is ready.

    Raises:
        PagewireError: there is none, or it does not start.
    """
    with (
        service_addresses([address], local, access=access) as addresses,
        Client(",".join(addresses), **access) as client,
    ):
        yield client


def read_vocab_size(address: str) -> int:
    """How many token ids the model of a service has."""
    with Client(address) as client:
        return client.list_models()[0].vocab_size


def _wait_until_ready(address: str, access: AccessOptions) -> None:
    once_each = RetryPolicy(max_attempts=len(split_addresses(address)), initial_backoff_s=0.0)
    with Client(address, timeout_s=5.0, retry=once_each, **access) as client:
        try:
            info = client.server_info()
        except UnavailableError as error:
            raise PagewireError(
                f"no service answers at {address}: start one with 'pagewire serve MODEL', or give its --address"
            ) from error
        if info.state is EngineState.UNAVAILABLE:
            raise PagewireError(f"the service at {address} cannot run requests: {info.detail}")
        if info.state is not EngineState.READY:
            _show_start(client)


def _show_start(client: Client) -> None:
    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            bars.update(
                task,
                description=escape(progress.stage) or "starting",
                completed=progress.done,
                total=progress.total or None,
            )

        client.wait_until_ready(on_progress=show)
