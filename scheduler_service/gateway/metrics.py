"""What does GET /metrics of a gateway say? What it counts itself, what its supervisor tells it, then the engine's part.

Names begin with `pagewire:`; the engine's are the scheduler's (see scheduler_service/core/metrics/report.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pagewire.ipc.exposition import render, to_metrics
from pagewire.ipc.metrics import Family, MetricKind, Sample, counter, gauge
from pagewire.ipc.requests import EngineState
from pagewire.ipc.supervision import ProcessReport, ProcessState
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.gateway import Gateway
from scheduler_service.gateway.open_calls import OpenCalls
from scheduler_service.gateway.service_state import ServiceState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ENGINE_TIMEOUT_S = 2.0


class GatewayMetrics:
    """Puts together what there is to tell.

    Args:
        registry: has what is counted already, and gets the rest.
        gateway: what there is to tell of.
        with_engine: whether the engine's part is told too.
    """

    def __init__(self, registry: CollectorRegistry, gateway: Gateway, *, with_engine: bool) -> None:
        self._engines = gateway.engines
        self._with_engine = with_engine
        self._registry = registry
        self._registry.register(
            _State(
                lambda: [*_of_gateway(gateway.engines, gateway.calls), *_of_service(gateway.state)],
                {"model_name": gateway.model.name},
            )
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    async def render(self) -> bytes:
        """The values now, as text. The engine's are missing while it does not answer."""
        answers = await self._engines.metrics(_ENGINE_TIMEOUT_S) if self._with_engine else []
        return generate_latest(self._registry) + render((answer.families, answer.labels) for answer in answers)


class _State(Collector):
    """Values that are there already, wherever they are kept."""

    def __init__(self, families_now: Callable[[], list[Family]], labels: dict[str, str]) -> None:
        self._families_now = families_now
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        return to_metrics(self._families_now(), self._labels)


def _of_gateway(engines: EnginePool, calls: OpenCalls) -> list[Family]:
    counts = engines.counts
    num_connected = len(engines.scheduler_incarnations)
    return [
        gauge("pagewire:open_calls", "Calls that are being answered.", calls.num_open),
        gauge(
            "pagewire:open_streams",
            "Sequences that run for this gateway, or wait for an engine.",
            engines.num_streams,
        ),
        gauge("pagewire:streams_without_scheduler", "Those that wait for an engine.", engines.num_waiting_streams),
        Family("pagewire:engines", MetricKind.GAUGE, "Engines that the gateway knows, by state.", _by_state(engines)),
        gauge("pagewire:scheduler_connected", "Schedulers that are connected.", num_connected),
        counter("pagewire:scheduler_losses", "Times that the scheduler was lost.", counts.num_losses),
        counter("pagewire:streams_recovered", "Streams given to a scheduler again.", counts.num_recovered),
        counter("pagewire:frames_dropped", "Frames of the scheduler that were dropped.", counts.num_dropped),
    ]


def _by_state(engines: EnginePool) -> list[Sample]:
    counts = Counter(engine.status.state for engine in engines.engines)
    return [Sample(counts[state], {"state": state.name.lower()}) for state in EngineState]


def _of_service(state: ServiceState) -> list[Family]:
    now = state.find().state
    states = [Sample(float(one is now), {"state": one.value}) for one in ProcessState]
    families = [Family("pagewire:service_state", MetricKind.GAUGE, "1 for the state of the service.", states)]
    if state.report is None:
        return families
    processes = state.report.processes
    return [
        *families,
        Family(
            "pagewire:process_state",
            MetricKind.GAUGE,
            "1 for the state that a process is in.",
            [
                Sample(float(one is process.state), {"process": process.name, "state": one.value})
                for process in processes
                for one in ProcessState
            ],
        ),
        _by_process("pagewire:process_restarts", MetricKind.COUNTER, "Starts after the first.", processes, _restarts),
        _by_process("pagewire:process_steps", MetricKind.COUNTER, "Steps since its start.", processes, _steps),
        _by_process(
            "pagewire:process_step_age_seconds", MetricKind.GAUGE, "Since its last step.", processes, _step_age_s
        ),
    ]


def _by_process(
    name: str,
    kind: MetricKind,
    text: str,
    processes: Iterable[ProcessReport],
    value_of: Callable[[ProcessReport], float | None],
) -> Family:
    values = [(process.name, value_of(process)) for process in processes]
    return Family(name, kind, text, [Sample(value, {"process": name}) for name, value in values if value is not None])


def _restarts(process: ProcessReport) -> float | None:
    return process.num_restarts


def _steps(process: ProcessReport) -> float | None:
    return None if process.is_gateway else process.num_steps


def _step_age_s(process: ProcessReport) -> float | None:
    return process.step_age_s
