"""Command line of the scheduler process."""

import argparse
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pagewire.ipc.chrome_trace import Recorder
from pagewire.ipc.logs import LogFormat, configure_logging
from pagewire.ipc.supervision import Heart
from pagewire.ipc.tracing import TracingError, open_tracer
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.loop import SchedulerLoop

if TYPE_CHECKING:
    from scheduler_service.core.metrics.sequence_spans import SequenceSpans
    from scheduler_service.core.metrics.server import MetricsServer


def main() -> int:
    """Run a scheduler until SIGINT, which stops it at once, or SIGTERM, on which it may finish what it has.

    Gives 0 after a requested stop, 1 after a failure.
    """
    arguments = _parse()
    configure_logging("scheduler", arguments.log_level, arguments.log_format)
    try:
        recorder = Recorder("scheduler", arguments.trace_dir)
        heart = Heart(arguments.supervisor_fd)
        heart.start()
        loop = SchedulerLoop(
            _config(arguments),
            arguments.request_address,
            arguments.worker_address,
            recorder,
            heart,
            arguments.curve_keys,
            _open_spans(arguments.otlp_endpoint),
        )
        server = _serve_metrics(arguments.metrics, loop)
    except (ValueError, OSError, TracingError) as error:
        print(f"scheduler: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGINT, lambda *_: loop.stop())
    signal.signal(signal.SIGTERM, lambda *_: loop.drain())
    requests, workers = loop.addresses
    print(f"scheduler listening requests={requests} workers={workers}", flush=True)
    if server is not None:
        print(f"scheduler metrics address={server.address}", flush=True)
    # What lives now lives on: a collection of garbage that looks at it again holds up every step for long.
    gc.collect()
    gc.freeze()
    loop.run()
    if server is not None:
        server.close()
    return 0


def _open_spans(endpoint: str | None) -> "SequenceSpans | None":
    tracer = open_tracer(endpoint, "scheduler", os.environ)
    if tracer is None:
        return None
    from scheduler_service.core.metrics.sequence_spans import SequenceSpans  # noqa: PLC0415 (imports OpenTelemetry)

    return SequenceSpans(tracer)


def _serve_metrics(address: str | None, loop: SchedulerLoop) -> "MetricsServer | None":
    if address is None:
        return None
    from scheduler_service.core.metrics.server import MetricsServer  # noqa: PLC0415 (imports an HTTP server)

    return MetricsServer(address, loop.metrics)


def _parse() -> argparse.Namespace:
    defaults = SchedulerConfig()
    parser = argparse.ArgumentParser(prog="python -m scheduler_service.core", description=__doc__)
    parser.add_argument("--request-address", required=True, help="ZeroMQ address that gateways connect to")
    parser.add_argument("--worker-address", required=True, help="ZeroMQ address that workers connect to")
    parser.add_argument("--block-size", type=int, default=defaults.block_size, help="tokens in one KV block")
    parser.add_argument("--max-num-seqs", type=int, default=defaults.max_num_seqs, help="most sequences in one step")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=defaults.max_num_batched_tokens, help="most tokens in one step"
    )
    parser.add_argument("--max-model-len", type=int, help="longest prompt plus output (default: the model's)")
    parser.add_argument("--num-blocks", type=int, help="KV blocks (default: what fits the workers' memory)")
    parser.add_argument("--tensor-parallel-size", type=int, default=defaults.tensor_parallel_size, help="worker ranks")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--prefix-caching", action=switch, default=True, help="share blocks between requests")
    parser.add_argument("--async-scheduling", action=switch, default=True, help="schedule one step ahead")
    parser.add_argument(
        "--orphan-grace-s",
        type=float,
        default=defaults.orphan_grace_s,
        help="seconds that sequences run on when their gateway is gone, for callers who resume them",
    )
    parser.add_argument(
        "--max-waiting-requests",
        type=int,
        default=defaults.max_waiting_requests,
        help="most requests that wait for their first turn; further ones are refused",
    )
    parser.add_argument(
        "--max-waiting-tokens", type=int, default=defaults.max_waiting_tokens, help="most tokens of those requests"
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        metavar="S",
        default=defaults.drain_timeout_s,
        help="after SIGTERM, seconds for sequences to end while no new ones begin; a second signal, SIGINT, or 0: none",
    )
    parser.add_argument(
        "--curve-keys", type=Path, metavar="DIR", help="keys for addresses that are reached over a network"
    )
    parser.add_argument("--model-name", default="", help="what metrics, and gateways, call the model")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics here over HTTP; default: off")
    parser.add_argument("--otlp-endpoint", metavar="URL", help="send traces to this OpenTelemetry collector, over HTTP")
    parser.add_argument("--trace-dir", type=Path, help="write what was done, and when, to a file here at the end")
    parser.add_argument("--supervisor-fd", type=int, metavar="N", help="inherited socket to send heartbeats to")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", default=LogFormat.TEXT, choices=tuple(LogFormat), help="json: an object a line")
    return parser.parse_args()


def _config(arguments: argparse.Namespace) -> SchedulerConfig:
    return SchedulerConfig(
        block_size=arguments.block_size,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        max_model_len=arguments.max_model_len,
        num_blocks=arguments.num_blocks,
        tensor_parallel_size=arguments.tensor_parallel_size,
        prefix_caching=arguments.prefix_caching,
        async_scheduling=arguments.async_scheduling,
        orphan_grace_s=arguments.orphan_grace_s,
        max_waiting_requests=arguments.max_waiting_requests,
        max_waiting_tokens=arguments.max_waiting_tokens,
        drain_timeout_s=arguments.drain_timeout,
        model_name=arguments.model_name,
    )


if __name__ == "__main__":
    sys.exit(main())
