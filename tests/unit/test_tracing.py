"""When does a process trace, and does OpenTelemetry cost nothing when it does not?"""

import json
import logging
import subprocess
import sys

import pytest

from pagewire.ipc.tracing import TracingError, open_tracer
from tests.fakes.otlp_collector import OtlpCollector
from tests.fakes.patience import PATIENCE_S

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_nothing_is_traced_unless_asked(environment: dict[str, str]) -> None:
    assert open_tracer(None, "gateway", environment) is None


def test_the_sdks_switch_turns_it_off() -> None:
    assert open_tracer(NOWHERE, "gateway", {"OTEL_SDK_DISABLED": "TRUE"}) is None


def test_an_endpoint_must_be_a_url() -> None:
    with pytest.raises(TracingError, match=r"--otlp-endpoint: 'collector:4317' is no URL"):
        open_tracer("collector:4317", "gateway", {})


def test_without_opentelemetry_a_flag_is_refused_and_a_variable_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "pagewire.ipc.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(TracingError, match=r"pip install 'pagewire\[tracing\]', or leave out --otlp-endpoint"):
        open_tracer(NOWHERE, "gateway", {})
    with caplog.at_level(logging.WARNING):
        assert open_tracer(None, "gateway", {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}) is None
    assert "nothing is traced" in caplog.text


def test_variables_name_the_collector_and_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpCollector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_SERVICE_NAME": "mine"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        tracer = open_tracer(None, "gateway", environment)
        assert tracer is not None
        span = tracer.start("a", "no traceparent at all")
        assert span is not None
        span.end()
        tracer.close()
        (received,) = collector.wait_for(lambda spans: bool(spans))
    assert (received.service, received.name, received.span.parent_span_id) == ("mine", "a", b"")


def test_a_full_url_is_taken_as_it_is() -> None:
    with OtlpCollector() as collector:
        tracer = open_tracer(f"{collector.endpoint}/v1/traces", "scheduler", {})
        assert tracer is not None
        span = tracer.start("b", "")
        assert span is not None
        span.fail("Sad", "a reason")
        span.end()
        tracer.close()
        (received,) = collector.wait_for(lambda spans: bool(spans))
    assert received.service == "pagewire-scheduler"
    assert (received.attributes["error.type"], received.span.status.message) == ("Sad", "a reason")


@pytest.mark.parametrize("module", ["scheduler_service.core", "scheduler_service.gateway", "gpu_worker"])
def test_who_does_not_trace_does_not_import_opentelemetry(module: str) -> None:
    program = f"""
import json, runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
except SystemExit:
    pass
import {"gpu_worker.worker" if module == "gpu_worker" else module}
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    modules = json.loads(done.stderr.splitlines()[-1])
    assert f"{module}" in modules
    assert not [name for name in modules if name.startswith("opentelemetry")]
