"""Which addresses has a name in the cluster? Those of a service's pods, by the rules of Kubernetes, over DNS.

A service with an address of its own would spread connections over its ready pods. Here its name stands for the
addresses of these pods, as a headless service's does, and callers spread.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Self

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from tests.cluster.network import NODE_ADDRESS
from tests.cluster.pod import Pod
from tests.fakes.chart import Manifest

# As CoreDNS's Kubernetes plugin has it by default.
_TTL_S = 5


def addresses(name: str, services: Iterable[Manifest], pods: Collection[Pod], domain: str) -> list[str] | None:
    """What a full name stands for, if there is such a name."""
    for service in services:
        full = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.{domain}"
        found = endpoints(service, pods)
        if name == full:
            return list(found.values())
        if name.endswith(f".{full}"):
            host = name.removesuffix(f".{full}")
            return [found[host]] if host in found else None
    return None


def endpoints(service: Manifest, pods: Iterable[Pod]) -> Mapping[str, str]:
    """The addresses of a service's pods, by name: of those that are ready and stay, or of all."""
    selector = service["spec"]["selector"].items()
    all_of_them = service["spec"].get("publishNotReadyAddresses", False)
    return {
        pod.name: pod.link.address
        for pod in pods
        if pod.link is not None and selector <= pod.labels.items() and (all_of_them or pod.is_ready)
    }


class NameServer(BaseResolver):
    """Answers on the node, over UDP and TCP, while it is entered. With `is_failing` it says that it cannot.

    Args:
        look_up: gives the addresses of a name without a dot at its end; None: there is no such name.
    """

    def __init__(self, look_up: Callable[[str], list[str] | None]) -> None:
        self.is_failing = False
        self._look_up = look_up
        logger = DNSLogger("-request,-reply,-truncated,-error", prefix=False)
        self._servers = [DNSServer(self, NODE_ADDRESS, 53, tcp=tcp, logger=logger) for tcp in (False, True)]

    def __enter__(self) -> Self:
        for server in self._servers:
            server.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """One answer."""
        reply = request.reply()
        found = self._look_up(str(request.q.qname).rstrip(".").lower())
        if self.is_failing:
            reply.header.rcode = RCODE.SERVFAIL
        elif found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in found:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=_TTL_S))
        return reply
