"""Do flags reach the processes they are for, under the names those processes know?"""

import argparse
from pathlib import Path

import pytest

from scheduler_service.supervisor.children import ServiceConfig, listen_address, service_children
from scheduler_service.supervisor.engine_flags import ENGINE_FLAGS, Target, add_engine_flags, arguments_for
from scheduler_service.supervisor.model_source import ModelSource

MODEL = ModelSource(Path("/models/tiny.gguf"), "tiny")


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_engine_flags(parser)
    return vars(parser.parse_args(arguments))


def children(*arguments, listen=(), num_gateways=1, model=MODEL):
    config = ServiceConfig(listen, num_gateways, parse(*arguments))
    return {child.name: child for child in service_children(config, model, Path("/run/x"))}


def flags_of(child):
    return " ".join(child.command[3:])


def test_without_flags_nothing_is_passed_on():
    assert [arguments_for(target, parse()) for target in Target] == [[], [], []]


def test_each_flag_reaches_its_processes_alone():
    values = parse("--block-size", "32", "--threads", "2", "--max-message-bytes", "9", "--log-level", "debug")
    assert arguments_for(Target.SCHEDULER, values) == ["--block-size", "32", "--log-level", "debug"]
    assert arguments_for(Target.WORKER, values) == ["--threads", "2", "--log-level", "debug"]
    assert arguments_for(Target.GATEWAY, values) == ["--max-message-bytes", "9", "--log-level", "debug"]


@pytest.mark.parametrize("flag", [flag for flag in ENGINE_FLAGS if flag.kind is bool])
def test_switches_are_passed_on_as_given(flag):
    assert arguments_for(flag.targets, parse(f"--no-{flag.name}")) == [f"--no-{flag.name}"]
    assert arguments_for(flag.targets, parse(f"--{flag.name}")) == [f"--{flag.name}"]
    assert arguments_for(flag.targets, parse()) == []


def test_one_process_each_by_default():
    made = children(listen=("127.0.0.1:50051",))
    assert list(made) == ["scheduler", "worker-0", "gateway-0"]
    assert flags_of(made["scheduler"]) == (
        "--request-address ipc:///run/x/requests.sock --worker-address ipc:///run/x/workers.sock --model-name tiny"
    )
    assert flags_of(made["worker-0"]) == (
        "--model /models/tiny.gguf --scheduler-address ipc:///run/x/workers.sock --rank 0"
    )
    assert flags_of(made["gateway-0"]) == (
        "--model /models/tiny.gguf --model-name tiny --scheduler-address ipc:///run/x/requests.sock "
        "--process-name gateway-0 --private-listen unix:/run/x/gateway-0.sock --listen 127.0.0.1:50051 "
        "--drain-timeout 30.0"
    )
    assert made["gateway-0"].num_announced == 2


def test_one_worker_per_rank():
    made = children("--tensor-parallel-size", "2")
    assert flags_of(made["worker-1"]).endswith(
        "--rank 1 --distributed-address file:/run/x/ranks --tensor-parallel-size 2"
    )
    assert made["worker-0"].group == made["worker-1"].group != ""
    assert "--tensor-parallel-size 2" in flags_of(made["scheduler"])


def test_workers_draw_the_weights_that_a_model_lacks():
    made = children("--dtype", "float32", model=ModelSource(Path("/models/tiny"), "tiny", has_weights=False))
    assert flags_of(made["worker-0"]).endswith("--dtype float32 --load-format dummy")


def test_gateways_listen_side_by_side():
    made = children(listen=("127.0.0.1:50051",), num_gateways=2)
    assert "--private-listen unix:/run/x/gateway-1.sock --listen 127.0.0.1:50052" in flags_of(made["gateway-1"])


def test_gateways_share_a_port_when_asked():
    config = ServiceConfig(
        ("127.0.0.1:50051", "unix:/a.sock"),
        2,
        parse(),
        http="127.0.0.1:5",
        health_listen="127.0.0.1:7",
        shares_port=True,
    )
    second = {child.name: child for child in service_children(config, MODEL, Path("/run/x"))}["gateway-1"]
    assert "--listen 127.0.0.1:50051 --listen unix:/a.sock.1 --share-port" in flags_of(second)
    assert "--http 127.0.0.1:5 --health-listen 127.0.0.1:8" in flags_of(second)
    assert second.num_announced == 4


@pytest.mark.parametrize(
    ("address", "expected"),
    [("0.0.0.0:7", "0.0.0.0:9"), ("[::1]:7", "[::1]:9"), ("h:0", "h:0"), ("unix:/a.sock", "unix:/a.sock.2")],
)
def test_address_of_a_further_gateway(address, expected):
    assert listen_address(address, 0) == address
    assert listen_address(address, 2) == expected
