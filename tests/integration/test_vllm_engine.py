"""Does a client of vLLM's gRPC protocol get what that protocol promises, and reach the scheduler as it meant?"""

import hashlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest
import tokenizers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import (
    common_pb2,
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from pagewire.ipc.requests import Abort, Ended, EndReason, Goodbye, Penalties, StepTokens, Submit
from tests.fakes.bare_scheduler import int_bytes
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length, stop_at_token
from tests.fakes.gateway_process import MODEL_NAME, TIMEOUT_S, GatewayProcess, error_reason
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import BOS, CHAT_TEMPLATE, byte_level_ids, write_tiny_model
from tests.integration.conftest import EOS_ID, VOCAB_SIZE


@pytest.fixture
def vllm(gateway: GatewayProcess, scheduler: FakeScheduler) -> Any:
    assert scheduler.take_all() == []
    return vllm_engine_pb2_grpc.VllmEngineStub(gateway.channel())


def generate_request(*input_ids: int, stream: bool = True, **params: Any) -> vllm_engine_pb2.GenerateRequest:
    """A request for tokens after these ids, or after 1, 2, 3."""
    return vllm_engine_pb2.GenerateRequest(
        request_id="r-1",
        tokenized={"input_ids": input_ids or (1, 2, 3)},
        sampling_params=params,
        stream=stream,
    )


def start(vllm: Any, scheduler: FakeScheduler, request: vllm_engine_pb2.GenerateRequest) -> tuple[Any, Submit]:
    """A call, and what the scheduler got of it."""
    call = vllm.Generate(request, timeout=TIMEOUT_S)
    return call, scheduler.take(Submit)


def refusal(vllm: Any, request: vllm_engine_pb2.GenerateRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(vllm.Generate(request, timeout=TIMEOUT_S))
    return caught.value


def test_chunks_have_new_tokens_and_one_complete_ends_the_choice(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request(max_tokens=3))
    chunks = []
    for token_id in (7, 8):
        scheduler.send_tokens([(submit.stream_id, token_id)])
        chunks.append(next(call).chunk)
    scheduler.send_tokens([(submit.stream_id, 9)], Ended(submit.stream_id, EndReason.LENGTH, None, 2, ""))
    *rest, complete = call
    chunks += [response.chunk for response in rest]
    assert [list(chunk.token_ids) for chunk in chunks] == [[7], [8], [9]]
    assert [(chunk.completion_tokens, chunk.prompt_tokens, chunk.index) for chunk in chunks] == [(1, 3, 0)] * 3
    assert complete.complete == vllm_engine_pb2.GenerateComplete(
        output_ids=[7, 8, 9], finish_reason="length", prompt_tokens=3, completion_tokens=3, cached_tokens=2
    )


def test_without_stream_there_are_only_completes(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request(stream=False, max_tokens=2))
    scheduler.send_stream(submit.stream_id, [7, 8], stop_at_length(submit.stream_id))
    (response,) = call
    assert list(response.complete.output_ids) == [7, 8]


def test_unset_fields_mean_what_vllm_means(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request())
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert sampling.penalties is None
    assert submit.max_tokens == 512 - 3
    call.cancel()
    scheduler.take(Abort)


def test_set_fields_reach_the_scheduler(vllm: Any, scheduler: FakeScheduler) -> None:
    request = generate_request(
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        min_p=0.25,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=2.0,
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=[5],
        ignore_eos=True,
        logprobs=2,
        seed=-1,
        logit_bias={4: 1.5},
    )
    call, submit = start(vllm, scheduler, request)
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 4, 0.25)
    assert sampling.penalties == Penalties(2.0, 0.5, -0.5)
    assert (sampling.seed, sampling.num_logprobs) == (2**64 - 1, 2)
    assert sampling.rules is not None
    assert sampling.rules.bias_ids == int_bytes([4])
    assert (submit.max_tokens, submit.min_tokens, submit.stop_token_ids, submit.ignore_eos) == (9, 2, (5,), True)
    assert submit.request_id == "r-1"
    call.cancel()
    scheduler.take(Abort)


def test_text_is_tokenized(vllm: Any, scheduler: FakeScheduler) -> None:
    request = vllm_engine_pb2.GenerateRequest(text="grüße", sampling_params={"truncate_prompt_tokens": 4})
    call, submit = start(vllm, scheduler, request)
    assert submit.token_ids == int_bytes(byte_level_ids("grüße".encode())[-4:])
    call.cancel()
    scheduler.take(Abort)


def test_more_tokens_than_fit_are_as_many_as_fit(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request(max_tokens=100_000))
    assert submit.max_tokens == 512 - 3
    call.cancel()
    scheduler.take(Abort)


def test_a_stop_string_ends_in_the_worker(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request(stop=["lo"], max_tokens=50))
    scheduler.send_tokens([(submit.stream_id, token_id) for token_id in byte_level_ids(b"hello world")])
    *_, last = call
    assert last.complete.matched_stop_str == "lo"
    assert last.complete.finish_reason == "stop"
    assert list(last.complete.output_ids) == byte_level_ids(b"hello")
    assert scheduler.take(Abort).stream_ids == (submit.stream_id,)


@pytest.mark.parametrize(("token_id", "matched"), [(5, "matched_token_id"), (EOS_ID, None)])
def test_a_stop_token_is_matched_if_the_request_named_it(
    vllm: Any, scheduler: FakeScheduler, token_id: int, matched: str | None
) -> None:
    call, submit = start(vllm, scheduler, generate_request(stop_token_ids=[5]))
    scheduler.send_stream(submit.stream_id, [7, token_id], stop_at_token(submit.stream_id, token_id))
    *_, last = call
    assert (last.complete.finish_reason, last.complete.WhichOneof("matched_stop")) == ("stop", matched)
    assert list(last.complete.output_ids) == [7, token_id]


def test_every_choice_has_its_chunks_and_its_complete(vllm: Any, scheduler: FakeScheduler) -> None:
    call, first = start(vllm, scheduler, generate_request(n=2, max_tokens=2))
    second = scheduler.take(Submit)
    scheduler.send_stream(second.stream_id, [5, 6], stop_at_length(second.stream_id))
    scheduler.send_stream(first.stream_id, [7, 8], stop_at_length(first.stream_id))
    responses = list(call)
    streamed: dict[int, list[int]] = {0: [], 1: []}
    for response in responses[:-2]:
        streamed[response.chunk.index] += response.chunk.token_ids
    completes = [response.complete for response in responses[-2:]]
    assert streamed == {0: [7, 8], 1: [5, 6]}
    assert {complete.index: list(complete.output_ids) for complete in completes} == streamed


def test_logprobs_come_with_their_tokens(vllm: Any, scheduler: FakeScheduler) -> None:
    for is_streamed in (True, False):
        call, submit = start(vllm, scheduler, generate_request(stream=is_streamed, logprobs=1, max_tokens=2))
        for token_id in (7, 8):
            record = struct.pack("<ifif", 1, -0.5, token_id + 1, -0.25)
            ended = [stop_at_length(submit.stream_id)] if token_id == 8 else []
            stream_ids = int_bytes([submit.stream_id])
            scheduler.send(StepTokens(stream_ids, int_bytes([token_id]), ended, logprobs={submit.stream_id: record}))
        responses = list(call)
        found = vllm_engine_pb2.OutputLogProbs()
        for response in responses:
            kind = response.WhichOneof("response")
            found.MergeFrom(getattr(response, kind).output_logprobs)
        assert found == vllm_engine_pb2.OutputLogProbs(
            token_logprobs=[-0.5, -0.5],
            token_ids=[7, 8],
            top_logprobs=[{"values": [-0.25], "token_ids": [8]}, {"values": [-0.25], "token_ids": [9]}],
        )


@pytest.mark.parametrize("is_streamed", [True, False])
def test_logprobs_of_the_prompt_come_once_and_at_the_end(
    vllm: Any, scheduler: FakeScheduler, is_streamed: bool
) -> None:
    call, submit = start(vllm, scheduler, generate_request(4, 5, stream=is_streamed, prompt_logprobs=1, max_tokens=2))
    record = struct.pack("<ifif", 1, -0.5, 6, -0.25)
    scheduler.send(StepTokens(b"", b"", [], prompt_logprobs={submit.stream_id: record}))
    scheduler.send_stream(submit.stream_id, [7, 8], stop_at_length(submit.stream_id))
    expected = vllm_engine_pb2.InputLogProbs(
        token_logprobs=[{}, {"value": -0.5}], token_ids=[4, 5], top_logprobs=[{}, {"values": [-0.25], "token_ids": [6]}]
    )
    *chunks, last = call
    assert last.complete.input_logprobs == expected
    told = [response.chunk.input_logprobs for response in chunks if response.chunk.HasField("input_logprobs")]
    assert told == ([expected] if is_streamed else [])


def test_abort_ends_the_request_and_frees_it(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request())
    scheduler.send_tokens([(submit.stream_id, 7)])
    assert list(next(call).chunk.token_ids) == [7]
    vllm.Abort(vllm_engine_pb2.AbortRequest(request_ids=["unknown", "r-1"]), timeout=TIMEOUT_S)
    assert scheduler.take(Abort).stream_ids == (submit.stream_id,)
    (last,) = call
    assert (last.complete.finish_reason, list(last.complete.output_ids)) == ("abort", [7])
    assert call.code() is grpc.StatusCode.OK


def test_a_caller_who_leaves_frees_the_request(vllm: Any, scheduler: FakeScheduler) -> None:
    call, submit = start(vllm, scheduler, generate_request())
    call.cancel()
    assert scheduler.take(Abort).stream_ids == (submit.stream_id,)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("sampling_params.json_schema", generate_request(json_schema="{}")),
        ("sampling_params.regex", generate_request(regex="a*")),
        ("sampling_params.grammar", generate_request(grammar="root ::= 'a'")),
        ("sampling_params.structural_tag", generate_request(structural_tag="{}")),
        ("sampling_params.json_object", generate_request(json_object=True)),
        ("sampling_params.choice", generate_request(choice={"choices": ["a"]})),
        ("data_parallel_rank", vllm_engine_pb2.GenerateRequest(text="a", data_parallel_rank=1)),
        ("kv_transfer_params_json", vllm_engine_pb2.GenerateRequest(text="a", kv_transfer_params_json="{}")),
        ("kv_transfer_params", vllm_engine_pb2.GenerateRequest(text="a", kv_transfer_params={})),
        ("mm_inputs", vllm_engine_pb2.GenerateRequest(text="a", mm_inputs={})),
        ("extra_mm_inputs", vllm_engine_pb2.GenerateRequest(text="a", extra_mm_inputs=[{}])),
        ("media_refs", vllm_engine_pb2.GenerateRequest(text="a", media_refs={})),
    ],
)
def test_what_is_not_served_is_refused_by_name(vllm: Any, field: str, request_: Any) -> None:
    error = refusal(vllm, request_)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details().startswith(f"{field} is not served")


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("sampling_params.top_p", generate_request(top_p=1.5)),
        ("sampling_params.temperature", generate_request(temperature=-1.0)),
        ("sampling_params.stop[0]", generate_request(stop=[""])),
        ("sampling_params.max_tokens", generate_request(max_tokens=0)),
        ("sampling_params.n", generate_request(n=1000)),
        ("sampling_params.logprobs", generate_request(logprobs=-1)),
        ("sampling_params.logprobs", generate_request(logprobs=21)),
        ("sampling_params.prompt_logprobs", generate_request(prompt_logprobs=21)),
        ("sampling_params.logit_bias", generate_request(logit_bias={-1: 1.0})),
        ("sampling_params.truncate_prompt_tokens", generate_request(truncate_prompt_tokens=0)),
        ("tokenized.input_ids[0]", generate_request(VOCAB_SIZE)),
        ("tokenized.input_ids", vllm_engine_pb2.GenerateRequest(tokenized={})),
        ("text", vllm_engine_pb2.GenerateRequest(text="")),
        ("input", vllm_engine_pb2.GenerateRequest()),
        ("prompt", generate_request(*[1] * 512)),
    ],
)
def test_bad_fields_are_named_as_the_caller_knows_them(vllm: Any, field: str, request_: Any) -> None:
    error = refusal(vllm, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")
    assert error_reason(error) == "INVALID_FIELD"


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Embed", vllm_engine_pb2.EmbedRequest()),
        ("StartProfile", common_pb2.StartProfileRequest()),
        ("StopProfile", common_pb2.StopProfileRequest()),
    ],
)
def test_methods_that_are_not_served_say_so(vllm: Any, method: str, request_: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(vllm, method)(request_, timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method in caught.value.details()


def test_services_of_other_engines_are_unimplemented(gateway: GatewayProcess) -> None:
    stub = sglang_scheduler_pb2_grpc.SglangSchedulerStub(gateway.channel())
    with pytest.raises(grpc.RpcError) as caught:
        stub.HealthCheck(sglang_scheduler_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["", "vllm.grpc.engine.VllmEngine", "inference.GRPCInferenceService"])
def test_probes_find_the_service(gateway: GatewayProcess, service: str) -> None:
    health = health_pb2_grpc.HealthStub(gateway.channel())
    response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_model_server_and_load_are_told(vllm: Any, scheduler: FakeScheduler) -> None:
    assert vllm.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).healthy
    model = vllm.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest(), timeout=TIMEOUT_S)
    assert (model.served_model_name, model.model_type, model.is_generation) == (MODEL_NAME, "tiny", True)
    assert (model.max_context_length, model.vocab_size, list(model.eos_token_ids)) == (512, VOCAB_SIZE, [EOS_ID])
    server = vllm.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest(), timeout=TIMEOUT_S)
    assert (server.server_type, server.data_parallel_size, server.block_size) == ("vllm-grpc", 1, 16)
    assert (server.active_requests, server.max_num_seqs) == (3, 256)
    (load,) = vllm.GetLoads(vllm_engine_pb2.GetLoadsRequest(), timeout=TIMEOUT_S).loads
    assert (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs) == (1, 2, 3)
    assert (load.num_used_tokens, load.max_total_num_tokens) == ((4096 - 3) * 16, 4096 * 16)
    assert load.token_usage == pytest.approx((4096 - 3) / 4096)


def test_without_its_package_the_protocol_is_not_offered(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['smg_grpc_proto'] = None")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with GatewayProcess(write_tiny_model(tmp_path / "model"), scheduler.address, tmp_path / "log") as process:
        process.wait_until_serving()
        stub = vllm_engine_pb2_grpc.VllmEngineStub(process.channel())
        with pytest.raises(grpc.RpcError) as caught:
            stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    scheduler.take(Goodbye)


def test_the_tokenizer_comes_as_a_zip_with_its_hash_at_the_end(vllm: Any) -> None:
    chunks = list(vllm.GetTokenizer(common_pb2.GetTokenizerRequest(), timeout=PATIENCE_S))
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks] == [""] * (len(chunks) - 1) + [hashlib.sha256(data).hexdigest()]
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert set(archive.namelist()) == {"tokenizer.json", "tokenizer_config.json", "config.json"}
    tokenizer = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode())
    assert tokenizer.encode("grüße").ids == byte_level_ids("grüße".encode())
    config = json.loads(archive.read("tokenizer_config.json"))
    assert (config["chat_template"], config["bos_token"]) == (CHAT_TEMPLATE, BOS)
    assert json.loads(archive.read("config.json"))["model_type"] == "tiny"
