"""When did the device run a step, on the clock of the host?"""

import time

import torch


class DeviceClock:
    """Reads the times of CUDA events as nanoseconds of the machine's monotonic clock, some microseconds off."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._origin = self.event()
        self._origin.synchronize()
        self._origin_ns = time.monotonic_ns()

    def event(self) -> torch.cuda.Event:
        """Record an event that has a time."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def time_ns(self, event: torch.cuda.Event) -> int:
        """When the device reached an event that is done."""
        return self._origin_ns + int(self._origin.elapsed_time(event) * 1e6)
