"""Can somebody with grpcurl and no protos find the services and call them? Reflection alone tells it how."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagewire.ipc.requests import Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import MODEL_NAME, GatewayProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids

GRPCURL = Path(sys.executable).parent / "grpcurl"


def grpcurl(address: str, *arguments: str, data: Any = None) -> "subprocess.Popen[str]":
    options = ["-plaintext", "-max-time", str(PATIENCE_S), *(["-d", json.dumps(data)] if data is not None else [])]
    return subprocess.Popen([str(GRPCURL), *options, address, *arguments], stdout=subprocess.PIPE, text=True)


def output_of(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def messages(text: str) -> list[Any]:
    """JSON objects that follow each other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def test_all_services_are_listed(gateway: GatewayProcess) -> None:
    services = output_of(grpcurl(gateway.address, "list")).split()
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "pagewire.v1.InferenceService",
        "vllm.grpc.engine.VllmEngine",
    ]


def test_server_info_is_told(gateway: GatewayProcess) -> None:
    (info,) = messages(output_of(grpcurl(gateway.address, "pagewire.v1.InferenceService/GetServerInfo")))
    assert info["engine_state"] == "ENGINE_STATE_READY"


@pytest.mark.parametrize(
    ("method", "request_", "last"),
    [
        (
            "pagewire.v1.InferenceService/Generate",
            {"text": "grüße", "sampling": {"seed": 7}},
            {"finished": {"reason": "FINISH_REASON_LENGTH", "usage": {"num_prompt_tokens": 7, "num_output_tokens": 2}}},
        ),
        (
            "vllm.grpc.engine.VllmEngine/Generate",
            {"text": "grüße"},
            {
                "complete": {
                    "output_ids": byte_level_ids(b"hi"),
                    "finish_reason": "length",
                    "prompt_tokens": 7,
                    "completion_tokens": 2,
                }
            },
        ),
    ],
)
def test_generate_is_called(
    gateway: GatewayProcess, scheduler: FakeScheduler, method: str, request_: Any, last: Any
) -> None:
    process = grpcurl(gateway.address, method, data=request_)
    submit = scheduler.take(Submit)
    scheduler.send_stream(submit.stream_id, byte_level_ids(b"hi"), stop_at_length(submit.stream_id))
    assert messages(output_of(process))[-1] == last


def test_the_model_is_described(gateway: GatewayProcess) -> None:
    process = grpcurl(gateway.address, "inference.GRPCInferenceService/ModelMetadata", data={"name": MODEL_NAME})
    (metadata,) = messages(output_of(process))
    assert metadata["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": ["1"]}]
