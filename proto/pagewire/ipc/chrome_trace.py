"""What did a process do, and when? Events in memory, written at its end as a Chrome trace that Perfetto opens.

Times are of the machine's monotonic clock, which its processes share: files of several processes can be put together.
"""

import json
import os
import time
from pathlib import Path

# A step has a handful of events: minutes of the fastest decoding, and some 100 MB.
_MAX_EVENTS = 1_000_000

DEVICE_STEP = "device step"
_MAIN_TRACK, _DEVICE_TRACK = 0, 1


class Recorder:
    """Collects the events of one process's main thread; off, and then almost free, without a directory.

    Args:
        process: its name in the trace.
        directory: where `close` writes; made if there is none. None records nothing.
    """

    def __init__(self, process: str, directory: Path | None) -> None:
        self._process = process
        self._directory = directory
        self._events: list[tuple[str, int, int, int | None]] = []

    def now(self) -> int:
        """The start of an event, for `add`."""
        return 0 if self._directory is None else time.monotonic_ns()

    def add(self, name: str, start_ns: int, step_id: int | None = None) -> None:
        """An event that began at `start_ns` ends now."""
        if self._directory is not None and len(self._events) < _MAX_EVENTS:
            self._events.append((name, start_ns, time.monotonic_ns() - start_ns, step_id))

    def add_device_step(self, span_ns: tuple[int, int], step_id: int) -> None:
        """A device ran a step from when to when."""
        if self._directory is not None and len(self._events) < _MAX_EVENTS:
            self._events.append((DEVICE_STEP, span_ns[0], span_ns[1] - span_ns[0], step_id))

    def close(self) -> None:
        """Write what there is, as a JSON array of trace events."""
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        events: list[dict[str, object]] = [
            {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": self._process}}
        ]
        events += (
            {
                "name": name,
                "ts": start_ns / 1000,
                "dur": duration_ns / 1000,
                "ph": "X",
                "pid": pid,
                "tid": _DEVICE_TRACK if name == DEVICE_STEP else _MAIN_TRACK,
                **({} if step_id is None else {"args": {"step_id": step_id}}),
            }
            for name, start_ns, duration_ns, step_id in self._events
        )
        path = self._directory / f"{self._process}-{pid}.json"
        path.write_text(json.dumps(events), encoding="utf-8")


NO_TRACE = Recorder("", None)
