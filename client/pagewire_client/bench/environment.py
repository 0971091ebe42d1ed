"""On what was a benchmark run? Machine, versions, flags and process counts, for its report."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pagewire_client.aio import AsyncClient

_TIMEOUT_S = 10.0
_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Environment:
    """What figures depend on beside the workload. None: not known, or no such process takes part."""

    gpus: list[str]
    num_cpus: int
    python_version: str
    pagewire_version: str | None
    torch_version: str | None
    engine_flags: list[str] | None
    num_gateway_processes: int | None
    num_client_processes: int | None


def describe_environment(
    *,
    engine_flags: Sequence[str] | None = None,
    num_gateway_processes: int | None = None,
    num_client_processes: int | None = None,
) -> Environment:
    """Look around on this machine."""
    return Environment(
        gpus=_gpu_names(),
        num_cpus=len(os.sched_getaffinity(0)),
        python_version=platform.python_version(),
        pagewire_version=_version("pagewire"),
        torch_version=_version("torch"),
        engine_flags=None if engine_flags is None else list(engine_flags),
        num_gateway_processes=num_gateway_processes,
        num_client_processes=num_client_processes,
    )


async def count_gateways(addresses: Sequence[str]) -> int:
    """How many processes answer at these addresses.

    Raises:
        RequestError: one does not.
    """
    incarnations = set()
    for address in addresses:
        async with AsyncClient(address, timeout_s=_TIMEOUT_S) as client:
            incarnations.add((await client.server_info()).gateway_incarnation)
    return len(incarnations)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_names() -> list[str]:
    """What the driver says. The client has no torch to ask."""
    files = sorted(_DRIVER.glob("*/information")) if _DRIVER.is_dir() else []
    found = (re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE) for file in files)
    return [match[1].strip() for match in found if match is not None]
