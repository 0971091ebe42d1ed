"""Command line of the worker process."""

import argparse
import os
import signal
import sys
from pathlib import Path

from gpu_worker.config import ATTENTION_BACKENDS, DEVICES, DTYPES, LOAD_FORMATS, WorkerConfig
from gpu_worker.cpu_limits import usable_cores
from gpu_worker.stop import Stop
from pagewire.ipc.logs import LogFormat, configure_logging
from pagewire.ipc.supervision import Heart
from pagewire.ipc.tracing import TracingError, open_tracer

# How often an idle thread of the OpenMP runtime looks for work before it sleeps: for about 80 us, longer than the gap
# between two kernels of a step. By default it looks for some ms, and so keeps a core from the very thread that it waits
# for: next to one busy process, steps took 10 times as long.
_OPENMP_SPINS = "4000"
_MAX_THREADS_PER_CPU = 8


def main() -> int:
    """Run a worker until SIGINT or SIGTERM; 0 after a requested stop, 1 after a failure.

    While it starts, a stop signal ends it at once, by that signal.
    """
    # Python's own handler would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = _parse()
    configure_logging(f"worker-{arguments.rank}", arguments.log_level, arguments.log_format)
    try:
        config = _config(arguments)
        tracer = open_tracer(arguments.otlp_endpoint, f"worker-{arguments.rank}", os.environ)
    except (ValueError, TracingError) as error:
        return _fail(str(error))
    heart = Heart(arguments.supervisor_fd)
    heart.start()
    os.environ.setdefault("GOMP_SPINCOUNT", _OPENMP_SPINS)
    if config.tensor_parallel_size > 1 and config.shares_host:
        # Ranks of one host talk over its loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Importing torch takes seconds: wrong settings are refused before. Signals keep their default action meanwhile,
    # because C code that imports modules swallows whatever a handler raises.
    from gpu_worker.device import obstacle_to_device  # noqa: PLC0415
    from gpu_worker.worker import describe, run_worker  # noqa: PLC0415

    stop = Stop(config.drain_timeout_s)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop.take_signal)
    status = 1
    try:
        obstacle = obstacle_to_device(config.device)
        # With its traceback the cause keeps the worker: to free what ranks share on GPUs would be to wait for a kernel
        # that may wait for another rank for ever.
        cause = run_worker(config, heart, tracer, stop) if obstacle is None else None
        failure = obstacle if cause is None else describe(cause)
        status = 0 if failure is None else _fail(failure)
        return status
    except SystemExit:
        status = 0
        raise
    finally:
        if config.tensor_parallel_size > 1:
            # An orderly end would wait for threads that wait for ranks which are gone.
            os._exit(status)


def _fail(reason: str) -> int:
    print(f"gpu_worker: {reason}", file=sys.stderr, flush=True)
    return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_worker", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or Hugging Face model directory")
    parser.add_argument("--scheduler-address", required=True, help="ZeroMQ address of the scheduler's worker socket")
    parser.add_argument("--rank", type=int, default=0, help="tensor-parallel rank of this worker")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="tensor-parallel ranks in all")
    parser.add_argument(
        "--distributed-address",
        metavar="ADDRESS",
        help="where several ranks meet: HOST:PORT, on which rank 0 listens, or file:PATH for ranks of one host",
    )
    parser.add_argument(
        "--distributed-timeout-s",
        type=float,
        default=60.0,
        metavar="X",
        help="longest wait for the other ranks, once all are loaded (default: 60)",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="cuda: of several GPUs the rank's own")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the weights (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    parser.add_argument("--threads", type=int, help="of computation on a CPU (default: usable cores / ranks)")
    parser.add_argument("--attention-backend", default="auto", choices=ATTENTION_BACKENDS)
    parser.add_argument(
        "--gpu-memory-utilization", type=float, default=0.9, help="share of the GPU's memory to use in all"
    )
    parser.add_argument(
        "--cpu-memory-gib", type=float, help="KV cache of each rank on a CPU (default: half of the memory / ranks)"
    )
    parser.add_argument("--load-format", default="auto", choices=LOAD_FORMATS, help="dummy: random weights")
    parser.add_argument(
        "--enforce-eager", action=argparse.BooleanOptionalAction, default=False, help="capture no CUDA graphs"
    )
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="on a GPU, the same tokens whatever is in the batch (slower; on a CPU the C kernels do so anyway)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of dummy weights")
    parser.add_argument(
        "--curve-keys", type=Path, metavar="DIR", help="keys for a scheduler that is reached over a network"
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="after SIGTERM, seconds to go on while the scheduler is there; a second signal, SIGINT, or 0: none",
    )
    parser.add_argument("--otlp-endpoint", metavar="URL", help="send traces to this OpenTelemetry collector, over HTTP")
    parser.add_argument("--trace-dir", type=Path, help="write what was done, and when, to a file here at the end")
    parser.add_argument("--supervisor-fd", type=int, metavar="N", help="inherited socket to send heartbeats to")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", default=LogFormat.TEXT, choices=tuple(LogFormat), help="json: an object a line")
    return parser.parse_args()


def _config(arguments: argparse.Namespace) -> WorkerConfig:
    return WorkerConfig(
        model=arguments.model,
        scheduler_address=arguments.scheduler_address,
        cache_dir=_cache_dir(),
        threads=_share_of_cores(arguments) if arguments.threads is None else _checked_threads(arguments.threads),
        rank=arguments.rank,
        tensor_parallel_size=arguments.tensor_parallel_size,
        device=arguments.device,
        dtype=arguments.dtype,
        attention_backend=arguments.attention_backend,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        cpu_memory_gib=arguments.cpu_memory_gib,
        load_format=arguments.load_format,
        enforce_eager=arguments.enforce_eager,
        deterministic=arguments.deterministic,
        seed=arguments.seed,
        distributed_address=arguments.distributed_address,
        distributed_timeout_s=arguments.distributed_timeout_s,
        trace_dir=arguments.trace_dir,
        curve_keys=arguments.curve_keys,
        drain_timeout_s=arguments.drain_timeout,
    )


def _share_of_cores(arguments: argparse.Namespace) -> int:
    """Cores for each of the ranks, which may all be on this host; at least one."""
    num_ranks: int = max(1, arguments.tensor_parallel_size)
    return max(1, usable_cores() // num_ranks)


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pagewire"
    except RuntimeError as error:
        raise ValueError("this user has no home directory for a cache: set XDG_CACHE_HOME to a directory") from error


def _checked_threads(asked: int) -> int:
    """Far more threads than there are CPUs cannot be started, and the OpenMP runtime aborts then."""
    most = _MAX_THREADS_PER_CPU * (os.cpu_count() or 1)
    if asked > most:
        raise ValueError(f"threads is {asked}: it must be at most {most}, {_MAX_THREADS_PER_CPU} for each CPU")
    return asked


if __name__ == "__main__":
    sys.exit(main())
