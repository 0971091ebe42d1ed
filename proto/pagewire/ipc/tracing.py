"""Does this process send spans anywhere, and if so, how? OpenTelemetry is imported only if it does."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagewire.ipc.spans import Tracer

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TracingError(Exception):
    """Spans cannot be sent; the message says why and what to do."""


def open_tracer(endpoint: str | None, process: str, environment: Mapping[str, str]) -> "Tracer | None":
    """A tracer that sends to an OTLP collector; None if no flag and no variable names one.

    Args:
        endpoint: of the flag --otlp-endpoint, such as http://localhost:4318.
        process: what the spans call this process, unless OTEL_SERVICE_NAME is set.
        environment: the OTEL_* variables; those that are not read here are the OpenTelemetry SDK's.

    Raises:
        TracingError: a flag asks for traces, and OpenTelemetry is not installed, or the endpoint is no URL.
    """
    if not endpoint and not any(environment.get(name) for name in _ENDPOINTS):
        return None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"--otlp-endpoint: {endpoint!r} is no URL: give one such as http://localhost:4318")
    try:
        # Importing it costs time and memory that only those pay who trace.
        from pagewire.ipc.spans import Tracer  # noqa: PLC0415
    except ImportError as error:
        problem = f"traces need OpenTelemetry, which cannot be imported ({error}): pip install 'pagewire[tracing]'"
        if endpoint:
            raise TracingError(f"{problem}, or leave out --otlp-endpoint") from error
        # The variables may be meant for every program of this machine.
        logger.warning("nothing is traced reason=%s", problem)
        return None
    return Tracer(endpoint, environment.get("OTEL_SERVICE_NAME") or f"pagewire-{process}")
