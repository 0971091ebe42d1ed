"""Which objects run, and what do they need that the chart does not bring? An installation, as it is documented."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scheduler_service.core import curve_keys
from scheduler_service.supervisor.dummy_model import write_dummy
from tests.cluster.volumes import Stores
from tests.fakes.chart import NAME, NAMESPACE, Manifest, manifests

GATEWAYS, ENGINES = f"{NAME}-pagewire-gateway", f"{NAME}-pagewire-engine"
HEADLESS = f"dns:///{GATEWAYS}-headless.{NAMESPACE}.svc.cluster.local:50051"
"""Where clients that balance by themselves find the gateways."""

_VALUES = "cpu-demo"
_CLAIM, _LOAD_CLAIM = "models", "load"
# Three workers and all else share this machine's cores.
_SETTINGS = ("gateway.replicas=2", "engine.replicas=3", "worker.extraArgs={--threads=1}")
_COMPILE = (
    "import sys, pathlib; from gpu_worker.kernels.native import load_native; load_native(pathlib.Path(sys.argv[1]))"
)


@dataclass(frozen=True, slots=True)
class Release:
    """What an installation of the chart gives, and what its pods mount.

    Attributes:
        manifests: the chart's objects.
        stores: with its secrets, its model, and a claim for the load's files.
        load_folder: what is on that claim.
        vocab_size: of the model, as far as prompts use it.
    """

    manifests: tuple[Manifest, ...]
    stores: Stores
    load_folder: Path
    vocab_size: int


def install(folder: Path, model: Path | None, *settings: str) -> Release:
    """Prepare a release.

    Args:
        folder: an empty one.
        model: a GGUF file; None: a tiny model with random weights.
        settings: more values of the chart.
    """
    secrets, claim, cache, load = (folder / name for name in ("curve", "models", "cache", "load"))
    for path in (claim, cache / "pagewire", load):
        path.mkdir(parents=True)
        path.chmod(0o777)
    assert curve_keys.main(["--dir", str(secrets)]) == 0
    source: tuple[str, ...]
    if model is None:
        source = (
            f"model.pvc.path={write_dummy('tiny', claim).relative_to(claim)}",
            "worker.loadFormat=dummy",
            "worker.cpuMemoryGib=0.25",
        )
    else:
        shutil.copy(model, claim)
        source = (f"model.pvc.path={model.name}",)
    # An image brings its kernels compiled.
    subprocess.run([sys.executable, "-c", _COMPILE, str(cache / "pagewire")], check=True)
    found = manifests(_VALUES, *_SETTINGS, "model.source=pvc", f"model.pvc.claimName={_CLAIM}", *source, *settings)
    stores = Stores({f"{NAME}-pagewire-curve": secrets}, {_CLAIM: claim, _LOAD_CLAIM: load}, {"cache": cache})
    return Release(found, stores, load, 10_000)


def client_pod(name: str, *command: str) -> Manifest:
    """A pod for those who call: no controller keeps it, and what is on the load's claim is its folder /load."""
    mount = {"name": "load", "mountPath": "/load"}
    container = {"name": "client", "command": [*command], "volumeMounts": [mount]}
    volume = {"name": "load", "persistentVolumeClaim": {"claimName": _LOAD_CLAIM}}
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {}},
        "spec": {
            "securityContext": {"runAsUser": 10001, "runAsGroup": 10001},
            "containers": [container],
            "volumes": [volume],
        },
    }
