"""How does a child learn that its supervisor was killed? The kernel kills it too; this module asks for that.

Runs as `python -m scheduler_service.supervisor.die_with_parent PARENT_PID COMMAND...`: sets the parent-death signal,
which execve keeps, and becomes COMMAND. The signal follows the parent's *thread*: start children from a thread that
lives as long as they may.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def launch_command(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it dies by SIGKILL when the calling process does."""
    return [sys.executable, "-m", "scheduler_service.supervisor.die_with_parent", str(os.getpid()), *command]


def main() -> None:
    """Set the signal and become the command."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"cannot tie this process to its parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        sys.exit("the parent is gone already")
    os.execvp(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
