"""Does `pagewire bench` measure what it says? Against a fake service, and a tiny random model in real processes."""

import json

import pytest

from pagewire_client.bench.workload import nano_workload
from pagewire_client.cli.bench.output import with_json_file
from tests.fakes import fake_gateway as fake
from tests.integration.test_cli import pagewire

TINY = ["dummy:tiny", "--cpu-memory-gib", "0.1", "--threads", "1", "--max-model-len", "2048"]
WARM_UPS = 1


@pytest.fixture
def gateway():
    with fake.FakeGateway(fake.FakeService()) as running:
        yield running


def bench(*arguments, **environment):
    """The JSON of one benchmark."""
    done = pagewire("bench", *arguments, "--json", XDG_CACHE_HOME="", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_serve_reports_its_workload(gateway):
    lengths = ["--input-len", "5", "--output-len", "6"]
    report = bench("serve", "-a", gateway.address, "-c", "4", "-r", "10", *lengths, "--client-processes", "2")
    assert (report["num_input_tokens"], report["num_output_tokens"], report["concurrency"]) == (50, 60, 4)
    assert report["output_tokens_per_s"] > 0
    environment = report["environment"]
    assert (environment["num_gateway_processes"], environment["num_client_processes"]) == (1, 2)
    sent = [request for request in gateway.service.requests if len(request.token_ids.ids) == 5]
    assert len(sent) == len({tuple(request.token_ids.ids) for request in sent}) == 10
    assert len(gateway.service.requests) == 10 + 2 * WARM_UPS
    assert all(request.stopping.ignore_eos for request in sent)


def test_serve_spreads_its_streams_over_gateways(gateway):
    with fake.FakeGateway(fake.FakeService()) as other:
        bench("serve", "-a", gateway.address, "-a", other.address, "-c", "2", "-r", "8")
        assert len(other.service.requests) == len(gateway.service.requests) == 4 + WARM_UPS


def test_serve_writes_json_beside_the_table(gateway, tmp_path):
    file = tmp_path / "report.json"
    done = pagewire("bench", "serve", "-a", gateway.address, "-c", "2", "--json", str(file))
    assert "time to first token" in done.stdout
    assert json.loads(file.read_text())["bench"] == "serve"
    failed = pagewire("bench", "serve", "-a", gateway.address, "-c", "2", "--json", str(tmp_path / "no" / "x"))
    assert failed.returncode == 1
    assert "cannot write" in failed.stderr


def test_serve_with_a_failing_request_measures_nothing(gateway):
    done = pagewire("bench", "serve", "-a", gateway.address, "--output-len", "999")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pagewire: INVALID_ARGUMENT: max_tokens is over the limit\n"


def test_serve_takes_engine_flags_for_a_private_service_alone(gateway):
    done = pagewire("bench", "serve", "-a", gateway.address, "--max-num-seqs", "8")
    assert done.returncode == 2
    assert "--max-num-seqs is for a private service" in done.stderr


def test_json_may_stand_without_its_file():
    assert with_json_file(["bench", "x", "--json"]) == ["bench", "x", "--json=-"]
    assert with_json_file(["bench", "--json", "--dtype", "f"]) == ["bench", "--json=-", "--dtype", "f"]
    assert with_json_file(["bench", "--json", "file"]) == ["bench", "--json", "file"]


def test_offline_runs_find_cached_prompts_only_where_they_are_meant_to():
    report = bench("offline", *TINY, "--workload", "nano", "-r", "4", "--repeats", "2")
    assert [run["num_cached_tokens"] for run in report["runs"]] == [0, 0]
    assert report["workload"]["num_output_tokens"] == nano_workload(4).summary.num_output_tokens
    assert report["environment"]["engine_flags"] == TINY[1:]
    cached = bench("offline", *TINY, "-r", "4", "--output-len", "8", "--prompts-cached", "--no-detokenize")
    assert [run["num_cached_tokens"] for run in cached["runs"]] == [4 * 112]


def test_serve_measures_a_private_service_with_several_gateways():
    report = bench("serve", "--local", *TINY, "--gateways", "2", "-c", "4", "--output-len", "16")
    assert report["num_output_tokens"] == 64
    assert report["environment"]["num_gateway_processes"] == 2


def test_trace_has_every_step_of_scheduler_and_worker_and_every_request(tmp_path):
    file = tmp_path / "trace.json"
    bench("serve", "--local", *TINY, "-c", "2", "-r", "3", "--output-len", "8", "--trace", str(file))
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(names.values()) == ["client", "scheduler", "worker-0"]

    def steps(process, name):
        chosen = [event for event in events if names[event["pid"]] == process and event["name"] == name]
        return {event["args"]["step_id"]: event["ts"] for event in chosen}

    sent, launched = steps("scheduler", "send"), steps("worker-0", "launch")
    assert len(sent) >= 8
    assert sent.keys() == launched.keys() == steps("worker-0", "answer").keys() == steps("scheduler", "update").keys()
    assert all(sent[step_id] < launched[step_id] for step_id in sent)
    assert len([event for event in events if (event["ph"], event["name"]) == ("b", "decode")]) == 3


def test_trace_of_offline_runs_has_each_run(tmp_path):
    file = tmp_path / "trace.json"
    bench("offline", *TINY, "-r", "2", "--output-len", "4", "--repeats", "2", "--trace", str(file))
    events = json.loads(file.read_text())["traceEvents"]
    assert [event["name"] for event in events].count("run") == 2


def test_trace_is_for_a_private_service_alone(gateway, tmp_path):
    done = pagewire("bench", "serve", "-a", gateway.address, "--trace", str(tmp_path / "x"))
    assert done.returncode == 2
    assert "--trace is for a private service" in done.stderr


def test_startup_breaks_down_into_the_stages_of_the_service():
    report = bench("startup", *TINY)
    (start,) = report["starts"]
    names = [stage["name"] for stage in start["stages"]]
    assert names[0] == "starting processes"
    assert "waiting for workers" in names
    assert sum(stage["duration_s"] for stage in start["stages"]) <= start["ready_s"] < start["first_token_s"]


def test_scheduler_is_measured_alone():
    report = bench("scheduler", "--num-seqs", "4", "--prompt-len", "20", "--steps", "50")
    assert [run["mode"] for run in report["runs"]] == ["calls", "sockets"]
    assert all(run["us_per_step"] > 0 for run in report["runs"])


def test_gateway_is_measured_alone():
    report = bench(
        "gateway", "--num-streams", "5", "--num-tokens", "20", "--token-rate", "200", "--client-processes", "2"
    )
    (run,) = report["runs"]
    assert 0 < run["delivered_tokens_per_s"] < 400
    assert run["tokens_per_message"] <= 20
    assert report["environment"]["num_gateway_processes"] == 1


def test_a_benchmark_that_fails_is_one_clear_line(tmp_path):
    done = pagewire("bench", "gateway", "--model", str(tmp_path / "none"), "--token-rate", "10")
    assert done.returncode == 1
    assert "scheduler_service.bench.gateway ended with exit status 1" in done.stderr
