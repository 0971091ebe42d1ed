"""What would the images hold? Each one's install steps, read from the Dockerfile, in a fresh virtual environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.fakes.dockerfile import DOCKERFILE, ROOT, Install, read_stages
from tests.fakes.patience import PATIENCE_S

FINAL = ("gateway", "scheduler", "worker", "worker-cpu")
STAGES = read_stages()
LOCKS = sorted(path.name for path in (ROOT / "docker").glob("*.lock"))
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"

PROGRAM = """
import importlib, importlib.metadata, json, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] not in ("triton", "scheduler_service"):
                raise
names = (d.name.lower().replace("_", "-") for d in importlib.metadata.distributions())
print(json.dumps(sorted(names)))
"""


def imported(environment, *packages):
    """The distributions in an environment, where every module of the packages could be imported."""
    command = [str(environment / "bin" / "python"), "-I", "-c", PROGRAM, *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def lend_torch(environment):
    (place,) = environment.glob("lib/python3*/site-packages")
    for name in ("torch", "torchgen", "functorch"):
        (place / name).symlink_to(Path(sysconfig.get_path("platlib")) / name)


@pytest.fixture(scope="module")
def install(tmp_path_factory):
    """A place where the build stage has been done, the wheel of this very source included."""
    place = Install(tmp_path_factory.mktemp("image"), sys.executable)
    place.run(STAGES["build"])
    return place


@pytest.fixture
def environment(install):
    yield install.environment
    shutil.rmtree(install.environment)


def test_hadolint_finds_nothing():
    done = subprocess.run([str(HADOLINT), str(DOCKERFILE)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "")


def test_gateway_can_serve_fetch_and_call_and_has_no_torch(install, environment):
    install.run(STAGES["gateway-build"])
    packages = ("scheduler_service.gateway", "scheduler_service.supervisor", "scheduler_service.core")
    there = imported(environment, *packages, "pagewire_client")
    assert {"pagewire", "grpcio", "tokenizers", "opentelemetry-sdk", "smg-grpc-proto"} <= there
    assert there.isdisjoint({"torch", "triton", "safetensors", "transformers", "pip", "setuptools", "pytest"})
    assert not [name for name in there if name.startswith("nvidia")]
    done = subprocess.run([environment / "bin" / "pagewire", "--help"], capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 0


def test_scheduler_can_run_in_a_container_and_has_no_torch(install, environment):
    install.run(STAGES["scheduler-build"])
    there = imported(environment, "scheduler_service.core", "scheduler_service.supervisor.container")
    assert {"pagewire", "pyzmq", "msgspec", "grpcio-health-checking", "prometheus-client"} <= there
    assert there.isdisjoint({"torch", "triton", "tokenizers", "starlette", "pip", "setuptools", "huggingface-hub"})


def test_cpu_worker_has_kernels_and_no_gpu_libraries(install, environment):
    """torch is lent by the tests' own environment: to install it takes longer than all the rest."""
    stage = STAGES["worker-cpu-build"]
    assert sum("$TORCH" in line for line in stage.of("RUN")) == 1
    install.run(stage, {"$TORCH": lambda: lend_torch(environment)})
    (kernels,) = environment.glob("lib/python3*/site-packages/gpu_worker/kernels")
    assert list(kernels.glob("prebuilt/*.so"))
    assert not (ROOT / "gpu_worker" / "kernels" / "prebuilt").exists()
    there = imported(environment, "scheduler_service.supervisor.container", "gpu_worker")
    assert {"pagewire", "pyzmq", "safetensors", "gguf", "sympy", "typing-extensions"} <= there
    assert there.isdisjoint({"torch", "triton", "tokenizers", "starlette"})
    assert not [name for name in there if name.startswith(("nvidia", "cuda"))]


@pytest.mark.parametrize("name", FINAL)
def test_last_stages_have_no_compiler_and_no_root(name):
    stage, base = STAGES[name], STAGES["base"]
    assert stage.parent == "base"
    assert base.of("USER") == ["10001:10001"]
    assert base.of("RUN") == [
        "python -m pip uninstall --yes pip &&      install --directory --owner 10001 --group 10001 "
        "/run/pagewire /var/cache/pagewire /models"
    ]
    assert not stage.of("USER")
    assert not stage.of("RUN")
    assert "gcc" not in json.dumps(base.instructions + stage.instructions)
    assert any(f"--from={name}-build /opt/pagewire /opt/pagewire" in rest for rest in stage.of("COPY"))


@pytest.mark.parametrize("name", LOCKS)
def test_locks_pin_everything_and_name_no_place(name):
    text = (ROOT / "docker" / name).read_text()
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[a-z0-9._-]+==\S+ ;", requirement) for requirement in requirements)
    assert all("--hash=sha256:" in requirement for requirement in requirements)
    assert not re.search(r"://|--index|--find-links|file:", text)


def locked(name):
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "docker" / name).read_text(), flags=re.MULTILINE))


def test_torch_is_the_version_of_the_makefile():
    (version,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert locked("worker.lock")["torch"] == version
    assert f"TORCH=torch=={version}" in STAGES["worker-cpu-build"].of("ARG")
    assert not {"torch", "triton"} & set(locked("worker-cpu.lock"))


def test_images_share_their_versions():
    known = {}
    for name in LOCKS:
        for package, version in locked(name).items():
            assert known.setdefault(package, version) == version, f"{package} of {name}"


def test_context_has_what_is_copied_and_nothing_built():
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {
        source.split("/")[0]
        for stage in STAGES.values()
        for rest in stage.of("COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied <= allowed
    assert "tests" not in allowed
    assert not [name for name in allowed if not os.path.exists(ROOT / name)]


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("gateway.lock", {"gateway", "vllm-protocol", "tracing", "container"}),
        ("scheduler.lock", {"scheduler", "tracing", "container"}),
        ("worker.lock", {"worker", "tracing", "container"}),
    ],
)
def test_locks_have_what_the_project_needs_now(name, extras):
    """Otherwise: docker/lock.sh."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    there = {package: Version(version) for package, version in locked(name).items()}
    for requirement in map(Requirement, wanted):
        package = canonicalize_name(requirement.name)
        if package != "pagewire":
            assert there[package] in requirement.specifier, package
