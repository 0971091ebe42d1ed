"""Are values checked? A typo, wherever it is, and what makes no sense, must be refused with its name."""

import json
import re

import pytest
import yaml

from tests.fakes.chart import CHART, HELM_3, HELM_4, helm

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def refusal(release, *settings, values="defaults"):
    sets = [part for setting in settings for part in ("--set-json", setting)]
    file = str(CHART / "ci" / f"{values}.yaml")
    done = helm(release, "template", "llm", str(CHART), "--values", file, *sets)
    return done.stderr if done.returncode != 0 else None


@pytest.mark.parametrize("release", [HELM_3, HELM_4], ids=lambda release: release.version)
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("gatway={}", "gatway"),
        ("gateway.replica=3", "replica"),
        ('worker.tensorParallelSize="4"', "tensorParallelSize"),
        ("worker.image.tags=1", "tags"),
        ('model.source="hup"', "source"),
        ("worker.gpuMemoryUtilization=1.5", "gpuMemoryUtilization"),
        ("gateway.drainSeconds=-1", "drainSeconds"),
    ],
)
def test_typo_is_refused(setting, named, release):
    said = refusal(release, setting)
    assert said is not None
    assert named in said


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('model.hub.repo="no-slash"', "repo"),
        ('worker.device="gpu"', "device"),
        ('worker.shmSize="8 GB"', "shmSize"),
        ('worker.resources={"limit":{"memory":"1Gi"}}', "limit"),
        ('gateway.tolerations=[{"keys":"x"}]', "keys"),
        ('gateway.affinity={"podAntiAfinity":{}}', "podAntiAfinity"),
        ('scheduler.extraArgs=["max-num-seqs=1"]', "extraArgs"),
        ('scheduler.extraEnv=[{"nam":"x"}]', "nam"),
        ('networkPolicy.callers=[{"podselector":{}}]', "podselector"),
        ("engine.multiHost.hosts=1", "hosts"),
        ('gateway.image.digest="latest"', "digest"),
        ('tests.chaos.enabled="yes"', "enabled"),
        ("tls.clientAuth=true", "tls"),
        ('gateway.schedulerAddresses=["engines:5555"]', "schedulerAddresses"),
        ('gateway.schedulerAddresses=["dns://engines:5555"]', "schedulerAddresses"),
        ('gateway.schedulerAddresses=["tcp://fd00::7:5555"]', "schedulerAddresses"),
        ("engine.minReadySeconds=-1", "minReadySeconds"),
        ('gateway.routing="fastest"', "routing"),
    ],
)
def test_what_makes_no_sense_is_refused(setting, named):
    said = refusal(HELM_4, setting)
    assert said is not None
    assert named in said


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (['model.hub.repo=""'], "model.hub.repo"),
        (['model.source="pvc"', 'model.pvc.claimName="x"', 'model.hub.repo=""'], "model.name"),
        (['model.source="pvc"'], "model.pvc.claimName"),
        (['model.source="image"'], "model.image.reference"),
        (["tls.enabled=true", "tls.certManager.enabled=true"], "tls.certManager.issuerName"),
        (["engine.autoscaling.enabled=true"], "engine.autoscaling.prometheusAddress"),
        (["inferenceGateway.pool.enabled=true"], "inferenceGateway.pool.endpointPickerName"),
    ],
)
def test_what_is_missing_is_told(settings, told):
    said = refusal(HELM_4, *settings)
    assert said is not None
    assert told in said


def objects(schema, path=""):
    """Every place in the schema where an object is described."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "object":
        yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from objects(part, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from objects(schema["items"], f"{path}[]")


def test_no_object_is_open():
    free = {".global", ".nodeAffinity", ".podAffinity", ".podAntiAffinity"}
    for path, schema in objects(SCHEMA):
        if not any(path.endswith(name) for name in free):
            assert schema.get("additionalProperties") not in (None, True), path


def names(values, path=""):
    for name, value in values.items():
        yield f"{path}.{name}"
        if isinstance(value, dict) and value:
            yield from names(value, f"{path}.{name}")


def test_every_value_has_a_default_and_every_default_a_schema():
    described = {f"{path}.{name}" for path, schema in objects(SCHEMA) for name in schema.get("properties", {})}
    given = set(names(VALUES))
    assert {name for name in given if not name.startswith(".grafana.dashboard.labels.")} <= described | {
        f"{part}.resources.{kind}.{what}"
        for part in (".gateway", ".scheduler", ".worker")
        for kind in ("requests", "limits")
        for what in ("cpu", "memory")
    }
    inner = ("[]", ".affinity.", ".resources.", ".global")
    assert {name for name in described if not any(part in name for part in inner)} <= given


def test_values_that_the_guide_names_exist():
    guide = (CHART.parents[1] / "docs" / "kubernetes.md").read_text()
    parts = "|".join(name for name, value in VALUES.items() if isinstance(value, dict) and value)
    named = set(re.findall(rf"(?<![\w/.=-])((?:{parts})(?:\.[a-zA-Z]+)+)(?=[=`\s])", guide))
    assert len(named) > 20
    assert {f".{name}" for name in named} <= set(names(VALUES))
