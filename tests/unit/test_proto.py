"""Are the .proto files clean, and is the checked-in code generated from them as they are?"""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from pagewire.v1 import generate_pb2, inference_pb2, inference_pb2_grpc
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"


def buf(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, timeout=PATIENCE_S)


def test_protos_pass_buf_standard():
    done = buf("lint")
    assert (done.returncode, done.stdout.decode()) == (0, "")


@pytest.mark.parametrize("module", [generate_pb2, inference_pb2])
def test_generated_messages_are_those_of_the_protos(module):
    image = buf("build", "--exclude-source-info", "-o", "-#format=binpb")
    assert image.returncode == 0, image.stderr
    files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(image.stdout).file}
    expected = files[module.DESCRIPTOR.name]
    expected.DiscardUnknownFields()  # buf adds its own notes
    actual = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(actual)
    for proto in (actual, expected):
        drop_json_names(proto)
    assert actual == expected


def test_generated_stub_has_every_method():
    methods = {method.name for method in inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods}
    servicer = inference_pb2_grpc.InferenceServiceServicer
    assert methods == {name for name in vars(servicer) if not name.startswith("_")}


def drop_json_names(proto) -> None:
    """Default JSON names are written out by some generators and not by others."""
    messages = list(proto.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
