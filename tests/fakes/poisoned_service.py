"""The real supervisor with workers that a token id kills: see poisoned_worker."""

import dataclasses
import sys
from pathlib import Path

from scheduler_service.supervisor.__main__ import main
from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.children import ServiceConfig, service_children
from scheduler_service.supervisor.model_source import ModelSource


def poisoned_children(config: ServiceConfig, model: ModelSource, run_dir: Path) -> list[ChildSpec]:
    """The children of a service, each worker started by another module."""

    def start_by_test(part: str) -> str:
        return "tests.fakes.poisoned_worker" if part == "gpu_worker" else part

    return [
        dataclasses.replace(child, command=tuple(map(start_by_test, child.command)))
        for child in service_children(config, model, run_dir)
    ]


if __name__ == "__main__":
    sys.exit(main(make_children=poisoned_children))
