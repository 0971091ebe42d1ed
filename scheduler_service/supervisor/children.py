"""Which processes make up a service, and with which command lines?"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.engine_flags import Target, arguments_for
from scheduler_service.supervisor.model_source import ModelSource

# The loops of scheduler and gateways turn several times a second, and no turn takes more than a fraction of one.
_LOOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service on one machine. `engine` holds parsed engine flags by key; empty `listen`: private socket only.

    `http` is where the first gateway serves HTTP, if anywhere, `health_listen` where it serves grpc.health.v1 alone.
    With `shares_port` all gateways listen on the ports of `listen` themselves. A worker hangs whose step takes longer
    than `step_timeout_s`.
    """

    listen: tuple[str, ...]
    num_gateways: int
    engine: Mapping[str, object]
    http: str | None = None
    step_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0
    health_listen: str | None = None
    shares_port: bool = False

    @property
    def http_scheme(self) -> str:
        """What begins the URLs of gateways."""
        return "https" if self.engine.get("tls_cert") else "http"

    @property
    def num_ranks(self) -> int:
        """Workers to start."""
        size = self.engine.get("tensor_parallel_size")
        return size if isinstance(size, int) else 1


def private_address(run_dir: Path, gateway: int = 0) -> str:
    """The unix socket on which the supervisor itself reaches a gateway."""
    return f"unix:{run_dir}/gateway-{gateway}.sock"


def service_children(config: ServiceConfig, model: ModelSource, run_dir: Path) -> list[ChildSpec]:
    """Scheduler, one worker per rank, gateways."""
    requests, workers = f"ipc://{run_dir}/requests.sock", f"ipc://{run_dir}/workers.sock"
    scheduler = _python("scheduler_service.core", "--request-address", requests, "--worker-address", workers)
    command = (*scheduler, "--model-name", model.name, *arguments_for(Target.SCHEDULER, config.engine))
    children = [ChildSpec("scheduler", command, max_quiet_s=_LOOP_TIMEOUT_S)]
    worker_flags = config.engine if model.has_weights else {**config.engine, "load_format": "dummy"}
    meeting = ("--distributed-address", f"file:{run_dir}/ranks") if config.num_ranks > 1 else ()
    for rank in range(config.num_ranks):
        worker = _python("gpu_worker", "--model", str(model.path), "--scheduler-address", workers, "--rank", str(rank))
        command = (*worker, *meeting, *arguments_for(Target.WORKER, worker_flags))
        children.append(ChildSpec(f"worker-{rank}", command, group="workers", max_quiet_s=config.step_timeout_s))
    children += [_gateway(config, model, run_dir, requests, index) for index in range(config.num_gateways)]
    return children


def _gateway(config: ServiceConfig, model: ModelSource, run_dir: Path, requests: str, index: int) -> ChildSpec:
    name = f"gateway-{index}"
    gateway = _python(
        "scheduler_service.gateway", "--model", str(model.path), "--model-name", model.name,
        "--scheduler-address", requests, "--process-name", name, "--private-listen", private_address(run_dir, index),
    )  # fmt: skip
    listen = [listen_address(address, index, config.shares_port) for address in config.listen]
    flags = [part for address in listen for part in ("--listen", address)]
    flags += ["--share-port"] if config.shares_port else []
    flags += ["--drain-timeout", str(config.drain_timeout_s)]
    if config.http is not None:
        flags += ["--http", listen_address(config.http, index, config.shares_port)]
    if config.health_listen is not None:
        flags += ["--health-listen", listen_address(config.health_listen, index)]
    command = (*gateway, *flags, *arguments_for(Target.GATEWAY, config.engine))
    num_announced = 1 + len(listen) + (config.http is not None)
    return ChildSpec(name, command, num_announced, stops_first=True, max_quiet_s=_LOOP_TIMEOUT_S)


def listen_address(address: str, gateway: int, shares_port: bool = False) -> str:
    """Where the n-th gateway listens: the given address, then the next ports, or all the same, or numbered sockets."""
    if gateway == 0:
        return address
    if shares_port and not address.startswith("unix:"):
        return address
    if address.startswith("unix:"):
        return f"{address}.{gateway}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + gateway if port != '0' else 0}"


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
