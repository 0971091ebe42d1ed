"""Does a request of any content end with an answer or with its caller's error, never with a fault of ours?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smg_grpc_proto.generated import vllm_engine_pb2
from tritonclient.grpc import service_pb2

from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import MODEL_NAME, GatewayProcess
from tests.fakes.tiny_model import write_tiny_model

VLLM = "/vllm.grpc.engine.VllmEngine/Generate"
TRITON = "/inference.GRPCInferenceService/ModelInfer"
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)

FLOATS = st.floats(width=32)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
UNSIGNED = st.integers(0, 2**32 - 1)
TEXTS = st.text(max_size=20)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("temperature", "top_p", "min_p"), FLOATS),
        **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), FLOATS),
        **dict.fromkeys(("logprobs", "prompt_logprobs", "seed", "truncate_prompt_tokens"), INTEGERS),
        **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "n"), UNSIGNED),
        "stop": st.lists(TEXTS, max_size=3),
        "stop_token_ids": st.lists(UNSIGNED, max_size=3),
        "logit_bias": st.dictionaries(INTEGERS, FLOATS, max_size=3),
        "json_schema": TEXTS,
        "ignore_eos": st.booleans(),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from(["temperature", "top_k", "stop", "stop_token_ids", "logit_bias", "seed", "max_tokens", "other"])


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A gateway whose scheduler takes requests and answers none; its channel."""
    folder = tmp_path_factory.mktemp("f")
    with (
        FakeScheduler(f"ipc://{folder}/r", vocab_size=300) as scheduler,
        GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log") as process,
    ):
        process.wait_until_serving()
        yield process.channel()
        assert "unexpected error" not in Path(folder / "log").read_text()


def status_of(channel: grpc.Channel, method: str, data: bytes) -> grpc.StatusCode:
    """How a call ends that is given little time."""
    call = channel.unary_stream(method)(data, timeout=0.02)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


@settings(max_examples=300)
@given(params=PARAMS, input_ids=st.lists(UNSIGNED, max_size=4), stream=st.booleans())
def test_vllm_requests(idle: grpc.Channel, params: dict[str, Any], input_ids: list[int], stream: bool) -> None:
    request = vllm_engine_pb2.GenerateRequest(tokenized={"input_ids": input_ids}, sampling_params=params, stream=stream)
    assert status_of(idle, VLLM, request.SerializeToString()) not in FAULTS


@settings(max_examples=300)
@given(parameters=st.dictionaries(NAMES, VALUES, max_size=3))
def test_triton_sampling_parameters(idle: grpc.Channel, parameters: dict[str, Any]) -> None:
    text = json.dumps(parameters).encode()
    tensors = {"text_input": b"a", "sampling_parameters": text}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [value]}}
        for name, value in tensors.items()
    ]
    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME, inputs=inputs)
    assert status_of(idle, TRITON, request.SerializeToString()) not in FAULTS


@settings(max_examples=300)
@given(method=st.sampled_from([VLLM, TRITON]), data=st.data())
def test_mutated_bytes(idle: grpc.Channel, method: str, data: st.DataObject) -> None:
    vllm = vllm_engine_pb2.GenerateRequest(text="hello", sampling_params={"stop": ["a"], "n": 2, "seed": 5})
    triton = service_pb2.ModelInferRequest(
        model_name=MODEL_NAME,
        inputs=[{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[b"\1\0\0\0a"],
    )
    raw = bytearray((vllm if method == VLLM else triton).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert status_of(idle, method, bytes(raw)) not in FAULTS
