"""Is the chart sound? Rendered by helm 3 and 4 from every file of values, linted, and checked against Kubernetes."""

import json
from functools import cache

import kubernetes_validate
import pytest
import yaml

from tests.fakes.chart import CHART, HELM_3, HELM_4, VALUE_FILES, Manifest, helm, manifests, pods, rendered

KUBERNETES = ("1.32", "1.34", "1.37")
# Kinds that others define; their shapes are in test_chart_templates.py.
FOREIGN = {"Certificate", "InferencePool", "LeaderWorkerSet", "ScaledObject", "ServiceMonitor"}


@cache
def check(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def check_manifest(manifest: Manifest, version: str) -> None:
    """Against the API server's schema, where no field may be that is not known. The same object is checked once."""
    check(json.dumps(manifest), version)


@pytest.mark.parametrize("release", [HELM_3, HELM_4], ids=lambda release: release.version)
@pytest.mark.parametrize("values", VALUE_FILES)
def test_lint_finds_nothing(values, release):
    done = helm(release, "lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{values}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUE_FILES)
def test_both_helms_render_the_same(values):
    assert manifests(values, release=HELM_3) == manifests(values, release=HELM_4)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUE_FILES)
def test_every_object_is_valid(values, version):
    for manifest in manifests(values):
        if manifest["kind"] not in FOREIGN:
            check_manifest(manifest, version)
    for pod in pods(values):
        template = {"metadata": pod.get("metadata", {}), "spec": pod["spec"]}
        check_manifest(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "p"}, "template": template}, version
        )


def test_a_field_that_kubernetes_does_not_know_is_found():
    wrong = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}, "automount": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_manifest(wrong, KUBERNETES[-1])


@pytest.mark.parametrize("values", VALUE_FILES)
def test_no_key_is_said_twice(values):
    class Strict(yaml.CSafeLoader):
        pass

    def once(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{keys} at {node.start_mark}"
        return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, once)
    assert list(yaml.load_all(rendered(HELM_4, values), Loader=Strict))


@pytest.mark.parametrize("values", VALUE_FILES)
def test_every_template_has_names_and_labels(values):
    seen = set()
    for manifest in manifests(values):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "llm"
        assert manifest["metadata"]["namespace"] == "serving"
        identity = (manifest["kind"], manifest["metadata"]["name"])
        assert identity not in seen
        seen.add(identity)


@pytest.mark.parametrize("values", VALUE_FILES)
def test_every_container_is_confined(values):
    for pod in pods(values):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            claims = {"models"} if not volumes >= {"models"} else set()
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes | claims


def test_every_object_is_in_some_rendering():
    """Each file of a template gives an object in at least one of the files of values."""
    templates = {
        f"templates/{path.relative_to(CHART / 'templates')}"
        for path in (CHART / "templates").rglob("*.yaml")
        if not path.name.startswith("_")
    }
    sources = {
        line.removeprefix("# Source: pagewire/")
        for values in VALUE_FILES
        for line in rendered(HELM_4, values).splitlines()
        if line.startswith("# Source: ")
    }
    assert templates <= sources
