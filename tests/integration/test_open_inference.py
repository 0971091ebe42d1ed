"""Do Triton's own clients work with the gateway, one request at a time and on a stream?"""

import asyncio
import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pagewire.ipc.requests import Abort, Ended, EndReason, Penalties, Submit
from tests.fakes.bare_scheduler import int_bytes
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import MODEL_NAME, TIMEOUT_S, GatewayProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids

TEXT, ANSWER = "grüße", byte_level_ids(b"hello world")


@pytest.fixture
def client(gateway: GatewayProcess, scheduler: FakeScheduler) -> Iterator[triton.InferenceServerClient]:
    assert scheduler.take_all() == []
    with triton.InferenceServerClient(gateway.address) as connected:
        yield connected


def tensor(name: str, value: object) -> triton.InferInput:
    datatype = "BOOL" if isinstance(value, bool) else "BYTES"
    infer_input = triton.InferInput(name, [1], datatype)
    array = np.array([value], dtype=bool) if isinstance(value, bool) else np.array([value], dtype=object)
    infer_input.set_data_from_numpy(array)
    return infer_input


def tensors(**values: object) -> list[triton.InferInput]:
    return [tensor(name, value) for name, value in {"text_input": TEXT, **values}.items()]


def answer(scheduler: FakeScheduler, token_ids: list[int] = ANSWER) -> Submit:
    """Let the scheduler answer the next request."""
    submit = scheduler.take(Submit)
    scheduler.send_stream(submit.stream_id, token_ids, Ended(submit.stream_id, EndReason.LENGTH, None, 2, ""))
    return submit


def text_of(result: triton.InferResult) -> str:
    (text,) = result.as_numpy("text_output")
    return str(text.decode())


class TritonStream:
    """The stream of a client, whose responses are waited for."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = client
        client.start_stream(lambda result, error: self._responses.put((result, error)))

    def send(self, request_id: str = "", **options: Any) -> None:
        options.setdefault("inputs", tensors(stream=True))
        options.setdefault("model_name", MODEL_NAME)
        self._client.async_stream_infer(request_id=request_id, **options)

    def next(self) -> tuple[triton.InferResult | None, InferenceServerException | None]:
        return self._responses.get(timeout=PATIENCE_S)

    def result(self) -> triton.InferResult:
        result, error = self.next()
        assert error is None
        assert result is not None
        return result


@pytest.fixture
def stream(client: triton.InferenceServerClient) -> Iterator[TritonStream]:
    yield TritonStream(client)
    client.stop_stream(cancel_requests=True)


def is_final(result: triton.InferResult) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def in_background(call: Any) -> Any:
    """Run a blocking call of the client while the test plays the scheduler."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(call)
    executor.shutdown(wait=False)
    return future


def test_server_and_model_are_live_ready_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL_NAME)
    assert client.is_model_ready(MODEL_NAME, "1")
    assert client.get_server_metadata().name == "pagewire"
    metadata = client.get_model_metadata(MODEL_NAME, as_json=True)
    assert metadata["name"] == MODEL_NAME
    assert {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]} == {
        "text_input": "BYTES",
        "stream": "BOOL",
        "sampling_parameters": "BYTES",
        "exclude_input_in_output": "BOOL",
    }
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["text_output"]


@pytest.mark.parametrize(("name", "version"), [("other", ""), (MODEL_NAME, "7")])
def test_another_model_or_version_is_not_found(client: triton.InferenceServerClient, name: str, version: str) -> None:
    assert not client.is_model_ready(name, version)
    for call in (
        lambda: client.get_model_metadata(name, version),
        lambda: client.infer(name, tensors(), model_version=version),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_infer_answers_with_text(client: triton.InferenceServerClient, scheduler: FakeScheduler) -> None:
    call = in_background(lambda: client.infer(MODEL_NAME, tensors(), request_id="r-1"))
    submit = answer(scheduler)
    result = call.result(PATIENCE_S)
    assert submit.token_ids == int_bytes(byte_level_ids(TEXT.encode()))
    assert text_of(result) == "hello world"
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r-1", MODEL_NAME, "1")
    assert is_final(result)
    assert response.parameters["finish_reason"].string_param == "length"
    counts = {name: response.parameters[f"num_{name}_tokens"].int64_param for name in ("input", "cached", "output")}
    assert counts == {"input": len(TEXT.encode()), "cached": 2, "output": len(ANSWER)}


def test_the_input_comes_back_when_it_is_not_excluded(
    client: triton.InferenceServerClient, scheduler: FakeScheduler
) -> None:
    for excluded, expected in ((False, f"{TEXT}hello world"), (True, "hello world")):
        inputs = tensors(exclude_input_in_output=excluded)
        call = in_background(lambda inputs=inputs: client.infer(MODEL_NAME, inputs))
        answer(scheduler)
        assert text_of(call.result(PATIENCE_S)) == expected


def test_sampling_parameters_reach_the_scheduler(
    client: triton.InferenceServerClient, scheduler: FakeScheduler
) -> None:
    # Numbers as text are what the clients of Triton's vLLM backend send.
    parameters = {
        "temperature": "0.5",
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "seed": "7",
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "repetition_penalty": 2.0,
        "logit_bias": {"4": 1.5},
        "allowed_token_ids": [4, 5],
        "bad_words": ["x"],
        "min_tokens": 2,
        "stop": ["nothing"],
        "stop_token_ids": [9],
        "ignore_eos": "true",
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    inputs = tensors(sampling_parameters=json.dumps(parameters))
    call = in_background(lambda: client.infer(MODEL_NAME, inputs, parameters={"max_tokens": 40}))
    submit = answer(scheduler)
    call.result(PATIENCE_S)
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 0, 0.125)
    assert (sampling.seed, sampling.penalties) == (7, Penalties(2.0, -0.5, 1.0))
    assert sampling.rules is not None
    assert (sampling.rules.allowed_ids, sampling.rules.bias_ids) == (int_bytes([4, 5]), int_bytes([4]))
    assert len(sampling.rules.bad_words) == 2
    assert (submit.max_tokens, submit.min_tokens, submit.stop_token_ids, submit.ignore_eos) == (40, 2, (9,), True)


def test_a_stop_text_ends_the_answer(client: triton.InferenceServerClient, scheduler: FakeScheduler) -> None:
    call = in_background(lambda: client.infer(MODEL_NAME, tensors(sampling_parameters='{"stop": "wor"}')))
    submit = scheduler.take(Submit)
    scheduler.send_tokens([(submit.stream_id, token_id) for token_id in ANSWER])
    result = call.result(PATIENCE_S)
    assert text_of(result) == "hello "
    assert result.get_response().parameters["finish_reason"].string_param == "stop"
    scheduler.take(Abort)


def test_a_timeout_is_the_requests_deadline(client: triton.InferenceServerClient, scheduler: FakeScheduler) -> None:
    call = in_background(lambda: client.infer(MODEL_NAME, tensors(), timeout=3_600_000_000))
    submit = answer(scheduler)
    call.result(PATIENCE_S)
    assert submit.deadline_s is not None
    assert 0 < submit.deadline_s - time.time() <= 3600


@pytest.mark.parametrize("empty_final", [False, True])
def test_a_stream_brings_text_as_it_comes_and_says_which_is_last(
    stream: TritonStream, scheduler: FakeScheduler, empty_final: bool
) -> None:
    stream.send("r-1", enable_empty_final_response=empty_final)
    submit = scheduler.take(Submit)
    for character in "hi":
        scheduler.send_tokens([(submit.stream_id, *byte_level_ids(character.encode()))])
        result = stream.result()
        assert (text_of(result), is_final(result)) == (character, False)
    scheduler.send_tokens([], stop_at_length(submit.stream_id))
    last = stream.result()
    assert (text_of(last), is_final(last), last.get_response().id) == ("", True, "r-1")


def test_a_stream_answers_requests_beside_each_other(stream: TritonStream, scheduler: FakeScheduler) -> None:
    stream.send("slow")
    slow = scheduler.take(Submit)
    stream.send("whole", inputs=tensors())
    answer(scheduler)
    whole = stream.result()
    assert (whole.get_response().id, text_of(whole), is_final(whole)) == ("whole", "hello world", True)
    scheduler.send_tokens([], stop_at_length(slow.stream_id))
    assert stream.result().get_response().id == "slow"


def test_an_error_on_a_stream_leaves_the_others_alone(stream: TritonStream, scheduler: FakeScheduler) -> None:
    stream.send("good")
    good = scheduler.take(Submit)
    stream.send("bad", parameters={"temperature": -1})
    result, error = stream.next()
    assert result is None
    assert error is not None
    assert error.message() == "temperature: is -1, must be 0 to 100"
    scheduler.send_tokens([], stop_at_length(good.stream_id))
    assert stream.result().get_response().id == "good"


def test_leaving_a_stream_frees_its_requests(client: triton.InferenceServerClient, scheduler: FakeScheduler) -> None:
    stream = TritonStream(client)
    stream.send("a")
    stream.send("b")
    streams = {scheduler.take(Submit).stream_id for _ in range(2)}
    client.stop_stream(cancel_requests=True)
    freed: set[int] = set()
    while freed != streams:
        freed |= set(scheduler.take(Abort).stream_ids)


def test_the_asynchronous_client_streams(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    async def run() -> list[tuple[str, bool]]:
        async def requests() -> Any:
            yield {"model_name": MODEL_NAME, "inputs": tensors(stream=True)}

        async with triton_aio.InferenceServerClient(gateway.address) as client:
            assert await client.is_server_ready()
            responses = client.stream_infer(requests())
            submit = await asyncio.to_thread(scheduler.take, Submit)
            scheduler.send_tokens([(submit.stream_id, ANSWER[0])], stop_at_length(submit.stream_id))
            found = []
            async for result, error in responses:
                assert error is None
                found.append((text_of(result), is_final(result)))
            return found

    assert asyncio.run(run()) == [("h", False), ("", True)]


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        (tensors()[1:], {}, "text_input: is missing"),
        (tensors(text="x"), {}, "text: is no input of this model"),
        ([*tensors(), *tensors()], {}, "text_input: is there twice"),
        ([tensor("text_input", True)], {}, "text_input: has datatype 'BOOL', must have BYTES"),
        (tensors(stream="yes"), {}, "stream: has datatype 'BYTES', must have BOOL"),
        (tensors(stream=True), {}, "stream: is true: call ModelStreamInfer"),
        (tensors(text_input=""), {}, "text_input: is an empty prompt"),
        (tensors(text_input=b"\xff"), {}, "text_input: is not UTF-8"),
        (tensors(text_input="x" * 512), {}, "text_input: has 512 tokens"),
        (tensors(sampling_parameters="{"), {}, "sampling_parameters: is not JSON"),
        (tensors(sampling_parameters="[]"), {}, "sampling_parameters: must be a JSON object"),
        (tensors(sampling_parameters='{"beams": 4}'), {}, "beams: is no parameter that is known"),
        (tensors(sampling_parameters='{"stop": [1]}'), {}, "stop: is [1], which cannot be used"),
        (tensors(sampling_parameters='{"stop": [""]}'), {}, "stop[0]: has 0 characters"),
        (tensors(sampling_parameters='{"top_k": -2}'), {}, "top_k: is -2, which cannot be used"),
        (tensors(sampling_parameters='{"top_k": 1.5}'), {}, "top_k: is 1.5, which cannot be used"),
        (tensors(sampling_parameters='{"temperature": true}'), {}, "temperature: is True, which cannot be used"),
        (tensors(sampling_parameters='{"temperature": NaN}'), {}, "temperature: is nan"),
        (tensors(sampling_parameters='{"ignore_eos": 1}'), {}, "ignore_eos: is 1, which cannot be used"),
        (tensors(sampling_parameters='{"logit_bias": {"-1": 1}}'), {}, "logit_bias: is"),
        (tensors(), {"top_p": 2.0}, "top_p: is 2"),
        (tensors(), {"max_tokens": 0}, "max_tokens: is 0"),
        (tensors(), {"beams": 4}, "beams: is no parameter that is known"),
    ],
)
def test_bad_requests_are_refused_with_the_callers_own_names(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL_NAME, inputs, parameters=parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message().startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_input_contents": [b"", b""]}, "raw_input_contents: has 2 entries for 1 inputs"),
        ({"raw_input_contents": [b"\1"]}, "text_input: must have one element"),
        ({"raw_input_contents": [b"\5\0\0\0abc"]}, "text_input: must have one element"),
        ({"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [2]}]}, "text_input: has shape [2]"),
        ({}, "text_input: has 0 elements"),
        ({"outputs": [{"name": "logits"}]}, "outputs.logits: is not what this model gives"),
    ],
)
def test_bad_tensors_are_refused(gateway: GatewayProcess, changes: dict[str, Any], message: str) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel())
    fields = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}], **changes}
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(service_pb2.ModelInferRequest(model_name=MODEL_NAME, **fields), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(message)


def test_typed_contents_are_read(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel())
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [TEXT.encode()]}}
    flag = {"name": "stream", "datatype": "BOOL", "shape": [1], "contents": {"bool_contents": [False]}}
    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME, inputs=[text, flag])
    call = stub.ModelInfer.future(request, timeout=TIMEOUT_S)
    submit = answer(scheduler)
    assert submit.token_ids == int_bytes(byte_level_ids(TEXT.encode()))
    assert call.result().raw_output_contents == [b"\x0b\0\0\0hello world"]


def test_bytes_that_are_no_request_end_the_stream(gateway: GatewayProcess) -> None:
    call = gateway.channel().stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"\xff"]), timeout=TIMEOUT_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
