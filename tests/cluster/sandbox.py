"""Where can a test have networks, mounts and processes of its own? In namespaces that end with their first process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_INSIDE = "CLUSTER_SANDBOX"
_TOOLS = ("unshare", "nsenter", "setpriv", "mount", "chroot", "ip")
# Whoever kills the first process here, or what started it, ends all others with it, and all networks and mounts.
_ENTER = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
)
_TRIAL = (
    "mkdir -p /run/netns; mount -t tmpfs none /run/netns; ip netns add trial;"
    "ip link add trial type veth peer name eth0 netns trial; ip rule add pref 101 to 10.0.0.1 blackhole"
)


def is_inside() -> bool:
    """Whether this process runs in a sandbox."""
    return _INSIDE in os.environ


@cache
def why_not() -> str:
    """What this machine lacks for a sandbox; empty if it has all."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces here"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"the programs {', '.join(missing)} (of util-linux, coreutils, iproute2) are not installed"
    if Path(__file__).is_relative_to("/tmp"):
        return "this checkout is below /tmp, and containers have a /tmp of their own"
    done = subprocess.run([*_ENTER, "sh", "-e", "-c", _TRIAL], capture_output=True, text=True)
    return f"namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else ""


def run(command: Sequence[str], *, capture: bool) -> "subprocess.CompletedProcess[str]":
    """Run a command in a new sandbox, and wait for its end."""
    environment = {**os.environ, _INSIDE: "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if capture else {}
    return subprocess.run([*_ENTER, *command], env=environment, text=True, **output)
