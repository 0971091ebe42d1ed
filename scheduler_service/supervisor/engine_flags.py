"""Which flags does the supervisor pass on to which process? Each process declares its own too."""

import argparse
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class Target(enum.Flag):
    """The processes that take a flag."""

    SCHEDULER = enum.auto()
    WORKER = enum.auto()
    GATEWAY = enum.auto()
    ALL = SCHEDULER | WORKER | GATEWAY


@dataclass(frozen=True, slots=True)
class EngineFlag:
    """A flag that is passed on as it was given; not given, the process's own default holds.

    `kind` bool makes a pair --NAME / --no-NAME.
    """

    name: str
    targets: Target
    kind: type
    help: str
    choices: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """The name as an attribute of parsed options."""
        return self.name.replace("-", "_")


_METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE"}
_SCHEDULER, _WORKER, _GATEWAY = Target.SCHEDULER, Target.WORKER, Target.GATEWAY

ENGINE_FLAGS = (
    EngineFlag("block-size", _SCHEDULER, int, "tokens in one KV block"),
    EngineFlag("max-num-seqs", _SCHEDULER, int, "most sequences in one step batch"),
    EngineFlag("max-num-batched-tokens", _SCHEDULER, int, "most tokens in one step batch"),
    EngineFlag("max-model-len", _SCHEDULER, int, "longest prompt plus output, in tokens"),
    EngineFlag("num-blocks", _SCHEDULER, int, "KV blocks in the pool; default: what fits the device"),
    EngineFlag("prefix-caching", _SCHEDULER, bool, "reuse the KV blocks of shared prefixes"),
    EngineFlag("async-scheduling", _SCHEDULER, bool, "schedule one step ahead of the device"),
    EngineFlag("tensor-parallel-size", _SCHEDULER | _WORKER, int, "worker processes that share the model"),
    EngineFlag("distributed-timeout-s", _WORKER, float, "longest wait of one rank for another"),
    EngineFlag("device", _WORKER, str, "where the model runs", ("auto", "cpu", "cuda")),
    EngineFlag("dtype", _WORKER, str, "precision of weights", ("auto", "float32", "float16", "bfloat16")),
    EngineFlag("threads", _WORKER, int, "CPU threads of each rank"),
    EngineFlag(
        "attention-backend", _WORKER, str, "attention implementation", ("auto", "triton", "flash_attn", "torch", "cpu")
    ),
    EngineFlag("enforce-eager", _WORKER, bool, "capture no CUDA graphs on a GPU"),
    EngineFlag("deterministic", _WORKER, bool, "the same tokens in any batch on a GPU too, more slowly"),
    EngineFlag("gpu-memory-utilization", _WORKER, float, "part of the GPU's memory to use"),
    EngineFlag("cpu-memory-gib", _WORKER, float, "memory for each rank's KV cache on CPU, in GiB"),
    EngineFlag("load-format", _WORKER, str, "dummy draws random weights", ("auto", "dummy")),
    EngineFlag("seed", _WORKER, int, "seed of dummy weights"),
    EngineFlag("max-message-bytes", _GATEWAY, int, "largest request message"),
    EngineFlag("max-http-connections", _GATEWAY, int, "most HTTP connections of each gateway; more get 503"),
    EngineFlag("max-response-bytes", _GATEWAY, int, "largest response message"),
    EngineFlag("max-connection-age", _GATEWAY, float, "seconds after which a connection takes no more calls"),
    EngineFlag("max-connection-age-grace", _GATEWAY, float, "seconds that open calls then have"),
    EngineFlag("compression", _GATEWAY, str, "of responses, for callers that take it", ("none", "gzip")),
    EngineFlag("channelz", _GATEWAY, bool, "serve grpc.channelz.v1"),
    EngineFlag("tls-cert", _GATEWAY, Path, "PEM certificate with its chain, for HOST:PORT addresses"),
    EngineFlag("tls-key", _GATEWAY, Path, "private key of the certificate"),
    EngineFlag("tls-client-ca", _GATEWAY, Path, "callers must show certificates of these authorities"),
    EngineFlag("api-keys", _GATEWAY, Path, "callers must send one of these keys; see 'pagewire keys'"),
    EngineFlag("max-waiting-requests", _SCHEDULER, int, "most requests that wait; further ones are refused"),
    EngineFlag("max-waiting-tokens", _SCHEDULER, int, "most tokens of waiting requests"),
    EngineFlag("orphan-grace-s", _SCHEDULER, float, "how long sequences run on when their gateway is gone"),
    EngineFlag("recovery-timeout-s", _GATEWAY, float, "how long streams wait for a scheduler when theirs is gone"),
    EngineFlag("trace-dir", _SCHEDULER | _WORKER, str, "directory for Chrome traces, written at the end"),
    EngineFlag("metrics", _SCHEDULER, str, "HOST:PORT where the scheduler itself serves Prometheus metrics"),
    EngineFlag("engine-metrics", _GATEWAY, bool, "/metrics of the gateways tells the scheduler's metrics too"),
    EngineFlag("otlp-endpoint", Target.ALL, str, "URL of the OpenTelemetry collector that gets traces"),
    EngineFlag("log-prompts", _GATEWAY, bool, "log what callers ask"),
    EngineFlag("log-format", Target.ALL, str, "json writes an object a line", ("text", "json")),
    EngineFlag("log-level", Target.ALL, str, "least level that is logged", ("debug", "info", "warning", "error")),
)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; values default to None, which passes nothing on."""
    group = parser.add_argument_group("engine", "passed on to scheduler, workers and gateways")
    for flag in ENGINE_FLAGS:
        if flag.kind is bool:
            group.add_argument(f"--{flag.name}", action=argparse.BooleanOptionalAction, help=flag.help)
        else:
            group.add_argument(
                f"--{flag.name}",
                type=flag.kind,
                choices=flag.choices,
                metavar=None if flag.choices else _METAVARS[flag.kind],
                help=flag.help,
            )


def arguments_for(target: Target, values: Mapping[str, object]) -> list[str]:
    """Command line of one kind of process, from parsed options by key."""
    arguments: list[str] = []
    for flag in ENGINE_FLAGS:
        value = values.get(flag.key)
        if value is None or not target & flag.targets:
            continue
        if flag.kind is bool:
            arguments.append(f"--{flag.name}" if value else f"--no-{flag.name}")
        else:
            arguments += [f"--{flag.name}", str(value)]
    return arguments
