"""A process for a container to start: it beats, and does as it is told through files named after its rank."""

import argparse
import signal
import sys
import time
from pathlib import Path

from pagewire.ipc.supervision import Heart, ProcessState


def main() -> None:
    """Run until SIGTERM, or until a file says otherwise: `ready-RANK`, `linger-RANK`, `hang-RANK`, `end-RANK`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--supervisor-fd", type=int, required=True)
    parser.add_argument("--rank", default="none")
    options = parser.parse_args()
    heart = Heart(options.supervisor_fd)
    heart.start()

    def told(what: str) -> bool:
        return (options.folder / f"{what}-{options.rank}").exists()

    signal.signal(signal.SIGTERM, lambda *_: None if told("linger") else sys.exit(0))
    (options.folder / f"started-{options.rank}").touch()
    while True:
        if told("end"):
            sys.exit(f"rank {options.rank} was told to end")
        if not told("hang"):
            heart.note(ProcessState.IDLE if told("ready") else ProcessState.STARTING)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
