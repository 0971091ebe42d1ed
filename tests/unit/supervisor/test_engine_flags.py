"""Does each process take the flags that the supervisor passes on to it?"""

import re
import subprocess
import sys

import pytest

from scheduler_service.supervisor.engine_flags import ENGINE_FLAGS, Target

MODULES = {
    Target.SCHEDULER: "scheduler_service.core",
    Target.WORKER: "gpu_worker",
    Target.GATEWAY: "scheduler_service.gateway",
}


@pytest.mark.parametrize("target", MODULES)
def test_a_process_takes_all_flags_and_values_that_are_passed_on_to_it(target: Target) -> None:
    command = [sys.executable, "-m", MODULES[target], "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "10000"}).stdout
    for flag in ENGINE_FLAGS:
        if target in flag.targets:
            found = re.search(rf"^  --{flag.name}(, --no-{flag.name})?( \{{(.*?)\}})?[ \n]", told, re.MULTILINE)
            assert found is not None, f"no --{flag.name}"
            assert (found[1] is not None) == (flag.kind is bool)
            assert found[3] == (None if flag.choices is None else ",".join(flag.choices))
