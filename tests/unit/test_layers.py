"""Does every package keep to its layer? Each is imported whole in a fresh interpreter and checked for strangers."""

import json
import subprocess
import sys

import pytest

from tests.fakes.patience import PATIENCE_S

OURS = frozenset(
    {
        "pagewire.v1",
        "pagewire.ipc",
        "pagewire.open_inference",
        "pagewire_client",
        "scheduler_service.bench",
        "scheduler_service.core",
        "scheduler_service.gateway",
        "scheduler_service.supervisor",
        "gpu_worker",
    }
)

# What comes with an extra and not with the base install, which is the client's.
EXTRAS = {
    "torch",
    "transformers",
    "zmq",
    "msgspec",
    "numpy",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
    "gguf",
    "starlette",
    "uvicorn",
    "uvloop",
    "smg_grpc_proto",
}

# Package: what else of ours it may import, and what it must do without.
LAYERS = {
    "pagewire.v1": (set(), {"torch", "zmq", "msgspec"}),
    "pagewire.ipc": (set(), {"torch", "grpc", "zmq"}),
    "pagewire.open_inference": (set(), {"torch", "grpc", "zmq", "msgspec"}),
    "pagewire_client": ({"pagewire.v1"}, EXTRAS),
    "scheduler_service.core": ({"pagewire.ipc"}, {"torch", "grpc", "transformers", "tokenizers"}),
    "scheduler_service.bench": (
        {"pagewire.v1", "pagewire.ipc", "scheduler_service.core", "scheduler_service.supervisor"},
        {"torch", "transformers", "tokenizers"},
    ),
    "scheduler_service.gateway": (
        {"pagewire.v1", "pagewire.ipc", "pagewire.open_inference"},
        {"torch", "transformers", "tritonclient"},
    ),
    "scheduler_service.supervisor": ({"pagewire.v1", "pagewire.ipc"}, {"torch", "transformers", "zmq", "msgspec"}),
    "gpu_worker": ({"pagewire.ipc"}, {"grpc", "transformers"}),
}

# What a module for one kind of device may need and a machine without it may lack.
OPTIONAL = ("triton",)

PROGRAM = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in sys.argv[2:]:
            raise
print(json.dumps(sorted(sys.modules)))
"""


def belongs_to(module: str, package: str) -> bool:
    """Whether a module is the package or inside it."""
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_package_imports_only_its_layer(package):
    allowed, forbidden = LAYERS[package]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, *OPTIONAL], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    strangers = {name for name in OURS - allowed - {package} if any(belongs_to(m, name) for m in modules)}
    assert strangers == set()
    assert {name for name in forbidden if any(belongs_to(m, name) for m in modules)} == set()
