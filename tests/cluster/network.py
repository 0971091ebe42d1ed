"""How do pods reach each other? Each has a network namespace and an address; the node between them routes.

    pod 10.244.0.10 eth0 ──── veth10 ┐
    pod 10.244.0.11 eth0 ──── veth11 ┤ node, 10.244.0.1: the kubelet and the DNS server
    pod 10.244.0.12 eth0 ──── veth12 ┘

The node's own namespace has no other link, so nothing leaves it.
"""

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

NODE_ADDRESS = "10.244.0.1"
_NAMESPACES = Path("/run/netns")
_FIRST, _PREFIX = 10, "10.244.0."
_MOST = 244
# What the node itself sends goes before the rules that cut a pod off from the others.
_OWN_PRIORITY, _CUT_PRIORITY = "100", "101"


@dataclass(frozen=True, slots=True)
class Link:
    """How a pod is connected: the name of its network namespace, its address, and the node's end of its wire."""

    namespace: str
    address: str
    wire: str

    def enter(self) -> list[str]:
        """What runs a command in the pod's network."""
        return ["nsenter", f"--net={_NAMESPACES / self.namespace}"]

    def cut(self) -> None:
        """Drop, without a word to anybody, what the pod and other pods send each other. The node still reaches it."""
        for direction in ("from", "to"):
            _ip("rule", "add", "pref", _CUT_PRIORITY, direction, self.address, "blackhole")

    def restore(self) -> None:
        """Undo `cut`."""
        for direction in ("from", "to"):
            _ip("rule", "del", "pref", _CUT_PRIORITY, direction, self.address, "blackhole")

    def remove(self) -> None:
        """Take the pod's network away, once nothing runs in it."""
        _ip("link", "del", self.wire)
        _ip("netns", "del", self.namespace)


class Network:
    """The node's network, in the sandbox that this process runs in."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        _NAMESPACES.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(_NAMESPACES)], check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _ip("link", "set", "lo", "up")
        _ip("addr", "add", f"{NODE_ADDRESS}/32", "dev", "lo")
        _ip("rule", "add", "pref", _OWN_PRIORITY, "iif", "lo", "lookup", "main")

    def connect(self, name: str) -> Link:
        """A namespace for a pod, with an address that none had before."""
        number = next(self._numbers)
        assert number < _MOST, "all addresses have been given"
        host = _FIRST + number
        link = Link(f"{name}-{host}", f"{_PREFIX}{host}", f"veth{host}")
        _ip("netns", "add", link.namespace)
        _ip("link", "add", link.wire, "type", "veth", "peer", "name", "eth0", "netns", link.namespace)
        _ip("link", "set", link.wire, "up")
        _ip("route", "add", link.address, "dev", link.wire, "src", NODE_ADDRESS)
        inside = ("-n", link.namespace)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "addr", "add", f"{link.address}/32", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "route", "add", NODE_ADDRESS, "dev", "eth0", "scope", "link")
        _ip(*inside, "route", "add", "default", "via", NODE_ADDRESS)
        return link


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
