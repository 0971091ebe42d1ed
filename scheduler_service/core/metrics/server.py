"""Where does the scheduler itself answer GET /metrics? In a thread, for a Prometheus that does not ask a gateway."""

import signal
from collections.abc import Callable, Iterable
from http.server import HTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pagewire.ipc.exposition import to_metrics
from pagewire.ipc.metrics import Family

FamiliesNow = Callable[[], tuple[dict[str, str], list[Family]]]


class _Engine(Collector):
    def __init__(self, families_now: FamiliesNow) -> None:
        self._families_now = families_now

    def collect(self) -> Iterable[Metric]:
        labels, families = self._families_now()
        return to_metrics(families, labels)


class MetricsServer:
    """Listens at HOST:PORT; port 0 takes a free one, see `address`.

    Args:
        families_now: labels and values now; called in the server's threads.

    Raises:
        ValueError: this is no HOST:PORT.
        OSError: the address cannot be used; the message says which and why.
    """

    def __init__(self, address: str, families_now: FamiliesNow) -> None:
        host, port = _split(address)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Engine(families_now))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        # Signals are the main thread's, whose waiting they end.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            server, thread = start_http_server(port, host.strip("[]"), registry)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OSError(f"cannot listen on {address}: {reason}; choose another --metrics address") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._server: HTTPServer = server
        self._thread: Thread = thread
        self.address = f"{host}:{server.server_port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit():
        raise ValueError(f"--metrics: {address!r} is no address: give HOST:PORT, port 0 for a free one")
    return host, int(port)
