"""Is the engine behind a gateway ready? The state of one wait, shared by both clients."""

import time
from collections.abc import Callable

import grpc

from pagewire_client.errors import RequestError, make_error
from pagewire_client.types import EngineState, Progress, ServerInfo

_POLL_S = 0.2
_CALL_TIMEOUT_S = 5.0


class Readiness:
    """Judges the answers to repeated GetServerInfo calls until one says READY or time is up."""

    call_timeout_s = _CALL_TIMEOUT_S

    def __init__(self, timeout_s: float | None, on_progress: Callable[[Progress], None] | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._on_progress = on_progress
        self._last = "no answer yet"

    def is_ready(self, info: ServerInfo) -> bool:
        """Take one answer."""
        if info.state is EngineState.READY:
            return True
        self._last = info.detail or info.progress.stage or info.state.value
        if self._on_progress is not None:
            self._on_progress(info.progress)
        return False

    def failed(self, error: RequestError) -> None:
        """Take one failed call.

        Raises:
            RequestError: waiting will not help.
        """
        if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise error
        self._last = error.message

    def wait_s(self) -> float:
        """Seconds until the next call.

        Raises:
            UnavailableError: time is up.
        """
        if self._deadline is not None and time.monotonic() + _POLL_S > self._deadline:
            raise make_error(grpc.StatusCode.UNAVAILABLE, f"the service is not ready: {self._last}")
        return _POLL_S
