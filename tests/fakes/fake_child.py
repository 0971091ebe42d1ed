"""A process for the supervisor to watch. Appends its pid to a file at each start, then does as told."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    """Run until SIGTERM, or fail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pids", type=Path, required=True, help="file to append the pid to")
    parser.add_argument("--fail", metavar="MESSAGE", help="say this and end with --status")
    parser.add_argument("--fail-after", type=int, default=0, help="starts that do not fail")
    parser.add_argument("--status", type=int, default=3)
    parser.add_argument("--die-by", type=int, metavar="SIGNAL", help="send this signal to itself")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--num-lines", type=int, default=0, help="lines to say first")
    options = parser.parse_args()
    stop = threading.Event()
    handler = signal.SIG_IGN if options.ignore_sigterm else lambda *_: stop.set()
    signal.signal(signal.SIGTERM, handler)
    for number in range(options.num_lines):
        print(f"line {number} {'x' * 100}", file=sys.stderr)
    with options.pids.open("a") as file:
        file.write(f"{threading.get_native_id()}\n")
    starts = len(options.pids.read_text().split())
    print(f"start {starts}", file=sys.stderr, flush=True)
    if options.fail and starts > options.fail_after:
        print(options.fail, file=sys.stderr)
        sys.exit(options.status)
    if options.die_by is not None:
        os.kill(os.getpid(), options.die_by)
    stop.wait()


if __name__ == "__main__":
    main()
