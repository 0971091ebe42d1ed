"""The real supervisor over fake processes: a fake gateway, and fake children given as a JSON list of argument lists.

A list that begins with "group NAME" makes the child a member of that group.

python -m tests.fakes.supervised '[["--pids", "/tmp/a"], ...]' --model FILE --listen ADDRESS ...
"""

import json
import sys
from functools import partial

from scheduler_service.supervisor import __main__ as supervisor
from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.children import private_address
from scheduler_service.supervisor.restart_policy import RestartPolicy


def make_children(config, model, run_dir):
    """Stand in for scheduler, workers and gateway."""
    listen = [private_address(run_dir), *config.listen]
    flags = [part for address in listen for part in ("--listen", address)]
    gateway = (sys.executable, "-m", "tests.fakes.fake_gateway", "--num-starting-answers", "2", *flags)
    children = [ChildSpec("gateway-0", gateway, num_announced=len(listen), stops_first=True)]
    for index, arguments in enumerate(json.loads(sys.argv[1])):
        group = ""
        if arguments[0].startswith("group "):
            group, arguments = arguments[0], arguments[1:]
        command = (sys.executable, "-m", "tests.fakes.fake_child", *arguments)
        children.append(ChildSpec(f"child-{index}", command, group=group))
    return children


if __name__ == "__main__":
    # On a slow machine a child may take long to fail: how long it lived does not say that it worked.
    supervisor.RestartPolicy = partial(RestartPolicy, min_uptime_s=float("inf"))
    sys.exit(supervisor.main(sys.argv[2:], make_children))
