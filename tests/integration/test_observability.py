"""Can a whole service be watched? Its metrics, traces and logs, as Prometheus, a collector and a machine read them."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pagewire.v1 import generate_pb2, inference_pb2_grpc
from pagewire_client import Client, SamplingParams
from tests.fakes.observed_service import ObservedService, Scrape
from tests.fakes.otlp_collector import OtlpCollector, Received
from tests.fakes.patience import PATIENCE_S, PATIENT

DASHBOARD = Path(__file__).parents[2] / "helm" / "pagewire" / "dashboards" / "pagewire.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
# Takes longer than any test.
ENDLESS = 30_000
SECRET = "a prompt that is nobody's business"

# What vLLM calls its metrics, and of which type they are.
VLLM = {
    "gauge": {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"},
    "counter": {
        "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens",
        "request_success",
    },
    "histogram": {
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_max_num_generation_tokens", "request_params_max_tokens",
        "iteration_tokens_total",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as running:
        yield running


@pytest.fixture(scope="module")
def service(collector: OtlpCollector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedService]:
    log = tmp_path_factory.mktemp("log") / "log"
    flags = (
        "--log-format",
        "json",
        "--otlp-endpoint",
        collector.endpoint,
        "--max-num-seqs",
        "4",
        "--max-waiting-requests",
        "2",
    )
    with ObservedService(log, *flags) as running:
        yield running


@pytest.fixture
def client(service: ObservedService) -> Iterator[Client]:
    with Client(service.address, retry=PATIENT) as connected:
        connected.wait_until_ready(PATIENCE_S)
        yield connected


def increase(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.since(before, name, **labels)


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_vllms_metrics_are_there_with_their_types_and_labels(service: ObservedService, client: Client) -> None:
    scrape = service.scrape()
    kinds = {name.removeprefix("vllm:"): kind for name, kind in scrape.kinds.items() if name.startswith("vllm:")}
    assert kinds == {name: kind for kind, names in VLLM.items() for name in names}
    for name in (name for name in scrape.names if name.startswith("vllm:")):
        for labels in scrape.labels(name):
            assert (labels["model_name"], labels["engine"]) == ("tiny", "0")
    (cache,) = scrape.labels("vllm:cache_config_info")
    limits = client.server_info().limits
    assert (cache["block_size"], cache["num_gpu_blocks"]) == (str(limits.block_size), str(limits.num_blocks))


def test_requests_are_counted(service: ObservedService, client: Client) -> None:
    before = service.scrape()
    params = SamplingParams(max_tokens=20, ignore_eos=True, seed=1)
    usages = [client.generate(f"prompt {number}", params).usage for number in range(3)]
    after = service.scrape()
    num_prompt = sum(usage.num_prompt_tokens for usage in usages)
    num_output = sum(usage.num_output_tokens for usage in usages)
    assert increase(before, after, "vllm:prompt_tokens_total") == num_prompt
    assert increase(before, after, "vllm:generation_tokens_total") == num_output == 60
    assert increase(before, after, "vllm:request_success_total", finished_reason="length") == 3
    assert increase(before, after, "vllm:time_to_first_token_seconds_count") == 3
    assert increase(before, after, "vllm:inter_token_latency_seconds_count") == 57
    assert increase(before, after, "vllm:request_generation_tokens_sum") == 60
    assert increase(before, after, "vllm:prefix_cache_queries_total") == num_prompt
    calls = {"protocol": "grpc", "method": "pagewire.v1.InferenceService/Generate"}
    service.wait_until(lambda: increase(before, service.scrape(), "pagewire:calls_total", **calls, code="OK") == 3)
    assert increase(before, service.scrape(), "pagewire:call_duration_seconds_count", **calls) == 3
    assert increase(before, after, "pagewire:process_restarts_total") == 0


def test_a_cached_prompt_is_a_hit(service: ObservedService, client: Client) -> None:
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    client.generate("the very same prompt " * 4, params)
    before = service.scrape()
    usage = client.generate("the very same prompt " * 4, params).usage
    assert increase(before, service.scrape(), "vllm:prefix_cache_hits_total") == usage.num_cached_tokens > 0


def test_a_cancelled_request_is_no_success(service: ObservedService, client: Client) -> None:
    before = service.scrape()
    with client.stream("never ending", SamplingParams(max_tokens=ENDLESS, ignore_eos=True)) as stream:
        next(stream)
        assert service.scrape().value("vllm:num_requests_running") == 1
    service.wait_until(
        lambda: increase(before, service.scrape(), "pagewire:requests_unfinished_total", reason="cancelled") == 1
    )
    assert increase(before, service.scrape(), "vllm:request_success_total") == 0
    calls = {"method": "pagewire.v1.InferenceService/Generate", "code": "CANCELLED"}
    service.wait_until(lambda: increase(before, service.scrape(), "pagewire:calls_total", **calls) == 1)
    service.wait_until(lambda: service.scrape().value("vllm:kv_cache_usage_perc") == 0)


def test_a_stop_text_is_a_success(service: ObservedService, client: Client) -> None:
    text = client.generate("some text", SamplingParams(max_tokens=60, ignore_eos=True, seed=3)).text
    stop = text[4:6]
    before = service.scrape()
    client.generate("some text", SamplingParams(max_tokens=60, ignore_eos=True, seed=3, stop=[stop]))
    service.wait_until(
        lambda: increase(before, service.scrape(), "vllm:request_success_total", finished_reason="stop") == 1
    )
    assert increase(before, service.scrape(), "pagewire:requests_unfinished_total") == 0


def test_a_full_engine_shows(service: ObservedService) -> None:
    """Four run, two wait, and whoever comes after them is refused."""
    before = service.scrape()
    with grpc.insecure_channel(service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = []
        for number in range(1, 5):
            calls.append(stub.Generate(request(max_tokens=ENDLESS)))
            service.wait_until(lambda number=number: service.scrape().value("vllm:num_requests_running") == number)
        calls += [stub.Generate(request(max_tokens=ENDLESS)) for _ in range(5)]
        codes = [call.code() for call in calls[4:] if not accepted(call)]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        full = service.scrape()
        for call in calls:
            call.cancel()
    assert (full.value("vllm:num_requests_running"), full.value("vllm:num_requests_waiting")) == (4, 2)
    assert 0 < full.value("vllm:kv_cache_usage_perc") < 1
    assert increase(before, full, "pagewire:requests_refused_total", reason="overloaded") == 3
    ended = {"method": "pagewire.v1.InferenceService/Generate"}
    service.wait_until(
        lambda: increase(before, service.scrape(), "pagewire:calls_total", **ended, code="CANCELLED") == 6
    )
    assert increase(before, service.scrape(), "pagewire:calls_total", **ended, code="RESOURCE_EXHAUSTED") == 3
    service.wait_until(lambda: service.scrape().value("vllm:num_requests_running") == 0)


def accepted(call: Any) -> bool:
    """Whether a call is accepted, once that is known."""
    try:
        return bool(next(call).HasField("accepted"))
    except grpc.RpcError:
        return False


def test_http_requests_are_counted_by_route(service: ObservedService) -> None:
    before = service.scrape()
    for path in ("/readyz", "/healthz", "/readyz?x", "/no/such/path"):
        service.get(path)
    after = service.scrape()
    assert increase(before, after, "pagewire:calls_total", protocol="http", method="/readyz", code="200") == 2
    assert after.value("pagewire:calls_total", protocol="http", method="other", code="404") == 1
    assert not any("/no" in labels["method"] for labels in after.labels("pagewire:calls_total"))


def test_the_scheduler_tells_the_same_itself(service: ObservedService) -> None:
    own = service.scrape(service.metrics_port)
    through = service.scrape()
    engine = {name for name in own.names if name.startswith(("vllm:", "pagewire:"))}
    assert engine < through.names
    for name in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_bucket"):
        assert own.value(name) == through.value(name)


def names_in_queries(text: str) -> set[str]:
    return set(re.findall(r"\b(?:vllm|pagewire):\w+", text))


def test_every_metric_of_the_dashboard_is_there(service: ObservedService, client: Client) -> None:
    client.generate("x", SamplingParams(max_tokens=2))
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    names = set().union(*(names_in_queries(target["expr"]) for target in targets))
    assert len(names) > 20
    assert names - service.scrape().names == set()
    variables = json.dumps(dashboard["templating"])
    assert names_in_queries(variables) <= service.scrape().names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_is_documented(service: ObservedService, client: Client) -> None:
    client.generate("x", SamplingParams(max_tokens=2))
    kinds = service.scrape().kinds
    rows = re.findall(r"^\| `((?:vllm|pagewire):\w+)(?:\{[^}]*\})?` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    told = {name.removesuffix("_total") if kind == "counter" else name: kind for name, kind in rows}
    assert told == {name: kind for name, kind in kinds.items() if name.startswith(("vllm:", "pagewire:"))}


# ---- traces ---------------------------------------------------------------------------------------------------------


def request(**stopping: Any) -> generate_pb2.GenerateRequest:
    return generate_pb2.GenerateRequest(
        text=SECRET, sampling={"seed": 5, "temperature": 0.5}, stopping={"ignore_eos": True, **stopping}
    )


def call(service: ObservedService, trace_id: str, flags: str = "01", **stopping: Any) -> str:
    """Generate as part of a trace; gives the request's id."""
    metadata = [("traceparent", f"00-{trace_id}-{'b7ad6b7169203331'}-{flags}"), ("tracestate", "vendor=x")]
    with grpc.insecure_channel(service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        events = list(stub.Generate(request(**stopping), metadata=metadata, timeout=PATIENCE_S))
    return str(events[0].accepted.request_id)


def of_trace(spans: list[Received], trace_id: str) -> dict[str, Received]:
    return {span.name: span for span in spans if span.span.trace_id.hex() == trace_id}


def test_a_trace_goes_through_all_processes(service: ObservedService, collector: OtlpCollector) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    request_id = call(service, trace_id, max_tokens=10)
    names = {"text_completion tiny", "scheduler", "queue", "prefill", "decode", "worker"}
    found = of_trace(collector.wait_for(lambda spans: of_trace(spans, trace_id).keys() >= names), trace_id)
    assert found.keys() == names
    gateway, scheduler, worker = found["text_completion tiny"], found["scheduler"], found["worker"]
    assert gateway.span.parent_span_id.hex() == "b7ad6b7169203331"
    assert gateway.span.kind == gateway.span.SPAN_KIND_SERVER
    assert scheduler.span.parent_span_id == gateway.span.span_id
    for name in ("queue", "prefill", "decode", "worker"):
        assert found[name].span.parent_span_id == scheduler.span.span_id
    services = {name: span.service for name, span in found.items()}
    assert services["text_completion tiny"] == "pagewire-gateway-0"
    assert services["worker"] == "pagewire-worker-0"
    assert {services[name] for name in ("scheduler", "queue", "prefill", "decode")} == {"pagewire-scheduler"}
    assert (
        gateway.attributes.items()
        >= {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": "tiny",
            "gen_ai.request.max_tokens": 10,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.seed": 5,
            "gen_ai.response.id": request_id,
            "gen_ai.usage.output_tokens": 10,
        }.items()
    )
    assert gateway.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert scheduler.attributes["gen_ai.response.id"] == worker.attributes["gen_ai.response.id"] == request_id
    assert scheduler.attributes["gen_ai.usage.output_tokens"] == worker.attributes["pagewire.num_steps"] == 10
    assert SECRET not in str([span.span for span in found.values()])


def test_a_trace_that_comes_over_http_goes_on(service: ObservedService, collector: OtlpCollector) -> None:
    trace_id, before = "5af7651916cd43dd8448eb211c80319c", service.scrape()
    body = json.dumps({"model": "tiny", "prompt": SECRET, "max_tokens": 4}).encode()
    headers = {"Content-Type": "application/json", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    address = f"http://127.0.0.1:{service.http}/v1/completions"
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=PATIENCE_S) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] > 0
    names = {"text_completion tiny", "scheduler", "worker"}
    found = of_trace(collector.wait_for(lambda spans: of_trace(spans, trace_id).keys() >= names), trace_id)
    assert found["text_completion tiny"].span.parent_span_id.hex() == "b7ad6b7169203331"
    calls = {"protocol": "http", "method": "/v1/completions", "code": "200"}
    service.wait_until(lambda: increase(before, service.scrape(), "pagewire:calls_total", **calls) == 1)


def test_the_phases_of_a_trace_fill_the_time_in_the_scheduler(
    service: ObservedService, collector: OtlpCollector
) -> None:
    trace_id = "1af7651916cd43dd8448eb211c80319c"
    call(service, trace_id, max_tokens=5)
    found = of_trace(collector.wait_for(lambda spans: "scheduler" in of_trace(spans, trace_id)), trace_id)
    queue, prefill, decode = (found[name].span for name in ("queue", "prefill", "decode"))
    scheduler = found["scheduler"].span
    # Clocks are compared when a span ends, so moments are equal to within a fraction of a millisecond.
    for earlier, later in (
        (scheduler.start_time_unix_nano, queue.start_time_unix_nano),
        (queue.end_time_unix_nano, prefill.start_time_unix_nano),
        (prefill.end_time_unix_nano, decode.start_time_unix_nano),
        (decode.end_time_unix_nano, scheduler.end_time_unix_nano),
    ):
        assert later - earlier > -50_000_000
    seconds = found["scheduler"].attributes
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == pytest.approx(
        float(str(seconds["gen_ai.latency.time_in_model_decode"])) * 1e9, abs=50_000_000
    )


def test_a_trace_that_is_not_sampled_is_not_sent(service: ObservedService, collector: OtlpCollector) -> None:
    dark, bright = "2af7651916cd43dd8448eb211c80319c", "3af7651916cd43dd8448eb211c80319c"
    call(service, dark, flags="00", max_tokens=5)
    call(service, bright, max_tokens=5)
    spans = collector.wait_for(lambda spans: {"worker", "scheduler"} <= of_trace(spans, bright).keys())
    assert of_trace(spans, dark) == {}


def test_a_refused_request_is_an_error_in_its_trace(service: ObservedService, collector: OtlpCollector) -> None:
    trace_id = "4af7651916cd43dd8448eb211c80319c"
    with pytest.raises(grpc.RpcError):
        call(service, trace_id, max_tokens=1_000_000)
    found = of_trace(collector.wait_for(lambda spans: bool(of_trace(spans, trace_id))), trace_id)
    assert found.keys() == {"text_completion tiny"}
    span = found["text_completion tiny"]
    assert span.span.status.code == span.span.status.STATUS_CODE_ERROR
    assert span.attributes["error.type"] == "InvalidArgumentError"


# ---- when something dies, and logs ----------------------------------------------------------------------------------


def test_a_death_shows_in_metrics(service: ObservedService, client: Client) -> None:
    before = service.scrape()
    with client.stream("to be continued", SamplingParams(max_tokens=1500, ignore_eos=True)) as stream:
        next(stream)
        service.child("gpu_worker").kill()
        assert stream.collect().usage.num_output_tokens == 1500
    service.wait_until(
        lambda: increase(before, service.scrape(), "pagewire:process_restarts_total", process="worker-0") == 1
    )
    after = service.scrape()
    assert increase(before, after, "pagewire:worker_recoveries_total") == 1
    assert increase(before, after, "pagewire:sequences_requeued_total") >= 1
    assert increase(before, after, "vllm:num_preemptions_total") == 0
    with client.stream("to be continued", SamplingParams(max_tokens=1500, ignore_eos=True)) as stream:
        next(stream)
        service.child("scheduler_service.core").kill()
        assert stream.collect().usage.num_output_tokens == 1500
    service.wait_until(
        lambda: increase(before, service.scrape(), "pagewire:process_restarts_total", process="scheduler") == 1
    )
    after = service.scrape()
    assert increase(before, after, "pagewire:scheduler_losses_total") == 1
    assert increase(before, after, "pagewire:streams_recovered_total") == 1
    # The new one counts from nothing, and a stream that it took over has no first token there.
    assert after.value("vllm:time_to_first_token_seconds_count") == 0
    assert after.value("vllm:request_success_total", finished_reason="length") == 1


def test_a_trace_outlives_its_scheduler(service: ObservedService, collector: OtlpCollector, client: Client) -> None:
    trace_id = "6af7651916cd43dd8448eb211c80319c"
    metadata = [("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")]
    with grpc.insecure_channel(service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        events = stub.Generate(request(max_tokens=1500), metadata=metadata, timeout=PATIENCE_S)
        assert next(events).HasField("accepted")
        service.child("scheduler_service.core").kill()
        *_, last = events
    assert last.finished.usage.num_output_tokens == 1500
    names = {"text_completion tiny", "scheduler"}
    found = of_trace(collector.wait_for(lambda spans: of_trace(spans, trace_id).keys() >= names), trace_id)
    assert found["scheduler"].span.parent_span_id == found["text_completion tiny"].span.span_id
    assert found["scheduler"].attributes["gen_ai.usage.output_tokens"] == 1500


def test_all_lines_are_objects_and_name_their_requests(service: ObservedService, client: Client) -> None:
    request_id = client.generate(SECRET, SamplingParams(max_tokens=3)).request_id
    service.wait_until(lambda: f'"request_id": "{request_id}"' in service.log_text())
    entries = service.log_entries()
    assert {entry["process"] for entry in entries} == {"supervisor", "scheduler", "worker-0", "gateway-0"}
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
    (ended,) = [entry for entry in entries if entry.get("request_id") == request_id]
    assert (ended["process"], ended["num_output_tokens"]) == ("gateway-0", 3)
    assert SECRET not in service.log_text()


def test_prompts_are_logged_when_asked_and_a_gateway_can_leave_out_the_engine(tmp_path: Path) -> None:
    """The collector that is named is not there, which must not matter."""
    nowhere = ("--otlp-endpoint", "http://127.0.0.1:9")
    with ObservedService(tmp_path / "log", "--log-prompts", "--no-engine-metrics", *nowhere) as service:
        with Client(service.address, retry=PATIENT) as client:
            client.wait_until_ready(PATIENCE_S)
            request_id = client.generate(SECRET, SamplingParams(max_tokens=3)).request_id
        assert f'prompt request_id={request_id} prompt="{SECRET}"' in service.log_text()
        names = service.scrape().names
        assert "pagewire:calls_total" in names
        assert not any(name.startswith("vllm:") for name in names)
        assert service.scrape(service.metrics_port).value("vllm:generation_tokens_total") == 3
        assert service.stop() == 0
