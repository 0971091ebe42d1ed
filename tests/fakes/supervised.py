"""The real supervisor over fake processes: a fake gateway, and fake children given as a JSON list of argument lists.

A list that begins with "group NAME" makes the child a member of that group.

python -m tests.fakes.supervised '[["--pids", "/tmp/a"], ...]' --model FILE --listen ADDRESS ...
"""

import json
import sys

from scheduler_service.supervisor.__main__ import main
from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.children import private_address


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
    sys.exit(main(sys.argv[2:], make_children))
