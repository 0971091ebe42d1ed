"""The chart as tests see it: what helm makes of a file of values."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.helm_tool import RELEASES, Release, fetch_helm
from tests.fakes.patience import PATIENCE_S

CHART = Path(__file__).parents[2] / "helm" / "pagewire"
VALUE_FILES = tuple(sorted(path.stem for path in (CHART / "ci").glob("*.yaml")))
HELM_3, HELM_4 = RELEASES
NAMESPACE, NAME = "serving", "llm"

Manifest = dict[str, Any]


def helm(release: Release, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, without what its user may have set up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    command = [str(fetch_helm(release)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)


@cache
def rendered(release: Release, values: str, *settings: str) -> str:
    """What the chart gives for a file of values, and `--set` settings."""
    sets = [part for setting in settings for part in ("--set", setting)]
    file = str(CHART / "ci" / f"{values}.yaml")
    done = helm(release, "template", NAME, str(CHART), "--namespace", NAMESPACE, "--values", file, *sets)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def manifests(values: str, *settings: str, release: Release = HELM_4) -> tuple[Manifest, ...]:
    """The objects that it gives."""
    loaded = yaml.load_all(rendered(release, values, *settings), Loader=yaml.CSafeLoader)
    return tuple(manifest for manifest in loaded if manifest is not None)


def find(kind: str, name: str, values: str, *settings: str) -> Manifest:
    """The one object of a kind and name, without the release's name."""
    full = f"{NAME}-pagewire-{name}" if name else f"{NAME}-pagewire"
    found = [m for m in manifests(values, *settings) if (m["kind"], m["metadata"]["name"]) == (kind, full)]
    assert len(found) == 1, f"{len(found)} of {kind} {full}"
    return found[0]


def has(kind: str, values: str, *settings: str) -> bool:
    """Whether there is an object of a kind."""
    return any(manifest["kind"] == kind for manifest in manifests(values, *settings))


def container(pod: Manifest, name: str) -> Manifest:
    """A container of a pod's template, which may be one that runs before the others."""
    spec = pod["spec"]
    (found,) = [c for c in (*spec["containers"], *spec.get("initContainers", [])) if c["name"] == name]
    return found


def arguments(pod: Manifest, name: str) -> list[str]:
    """What a container of it is started with."""
    found = container(pod, name)
    return [*found["command"], *found.get("args", [])]


def pods(values: str, *settings: str) -> list[Manifest]:
    """Every pod that the chart's objects make."""
    found = []
    for manifest in manifests(values, *settings):
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Pod":
            found.append(manifest)
        elif manifest["kind"] == "LeaderWorkerSet":
            found += [spec["leaderWorkerTemplate"][part] for part in ("leaderTemplate", "workerTemplate")]
        elif "template" in spec:
            found.append(spec["template"])
    return found
