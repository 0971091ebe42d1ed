"""What does each template say? One test for each."""

import ast
import json
import re

import pytest

from scheduler_service.gateway.engines.routing import RoutingPolicy
from tests.fakes.chart import CHART, HELM_4, VALUE_FILES, arguments, container, find, has, helm, pods

GATEWAY, ENGINE = "gateway", "engine"


def labels(component):
    return {
        "app.kubernetes.io/name": "pagewire",
        "app.kubernetes.io/instance": "llm",
        "app.kubernetes.io/component": component,
    }


def is_selected(pod, selector):
    return selector.items() <= pod["metadata"]["labels"].items()


def test_gateway_deployment():
    spec = find("Deployment", GATEWAY, "defaults")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = spec["template"]
    assert pod["metadata"]["labels"]["inference.networking.k8s.io/engine-type"] == "vllm"
    gateway = container(pod, GATEWAY)
    health = 8086
    assert gateway["readinessProbe"]["grpc"] == {"port": health}
    assert (
        gateway["livenessProbe"]["grpc"] == gateway["startupProbe"]["grpc"] == {"port": health, "service": "liveness"}
    )
    assert f"--health-listen=0.0.0.0:{health}" in gateway["args"]
    assert {"hostname", "zone"} == {c["topologyKey"].split("/")[1] for c in pod["spec"]["topologySpreadConstraints"]}


def seconds(line, flag):
    """What a command line says for a flag with a number."""
    (found,) = [part for part in line if part.startswith(f"{flag}=")]
    return float(found.partition("=")[2])


@pytest.mark.parametrize("settings", [(), ("engine.drainSeconds=0", "engine.preStopSeconds=0")])
@pytest.mark.parametrize("values", VALUE_FILES)
def test_pods_have_time_to_drain(values, settings):
    for pod in pods(values, *settings):
        grace = pod["spec"].get("terminationGracePeriodSeconds")
        for found in pod["spec"]["containers"]:
            if found["name"] not in ("gateway", "scheduler", "worker"):
                continue
            line, stop = arguments(pod, found["name"]), found.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})
            needed = seconds(line, "--drain-timeout")
            if found["name"] != "gateway":
                assert needed < seconds(line, "--grace-s")
                needed = seconds(line, "--grace-s")
            assert stop["preStop"]["sleep"]["seconds"] + needed + 5 <= grace


@pytest.mark.parametrize("values", VALUE_FILES)
def test_workers_outlive_the_drain_of_their_scheduler(values):
    kind = "LeaderWorkerSet" if has("LeaderWorkerSet", values) else "StatefulSet"
    spec = find(kind, ENGINE, values)["spec"]
    engine = spec["leaderWorkerTemplate"]["leaderTemplate"] if kind == "LeaderWorkerSet" else spec["template"]
    scheduler = arguments(engine, "scheduler")
    assert seconds(scheduler, "--drain-timeout") >= 10
    for pod in pods(values):
        for found in pod["spec"]["containers"]:
            if found["name"] == "worker":
                assert found["lifecycle"] == container(engine, "scheduler")["lifecycle"]
                assert seconds(arguments(pod, "worker"), "--drain-timeout") > seconds(scheduler, "--grace-s")


def test_gateway_with_tls_and_keys():
    pod = find("Deployment", GATEWAY, "mtls")["spec"]["template"]
    line = arguments(pod, GATEWAY)
    assert {"--tls-cert=/etc/pagewire/tls/tls.crt", "--tls-client-ca=/etc/pagewire/client-ca/ca.crt"} <= set(line)
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
    assert secrets == {"curve": "llm-pagewire-curve", "tls": "llm-pagewire-tls", "client-ca": "callers-ca"}
    (model,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "models"]
    assert model["image"]["reference"] == "registry.example/models/qwen3-8b:1"
    assert "--model=/models/model" in line
    keyed = find("Deployment", GATEWAY, "one-gpu")["spec"]["template"]
    assert "--api-keys=/etc/pagewire/api-keys/keys.toml" in arguments(keyed, GATEWAY)
    assert "--model=/models/Qwen3-8B" in arguments(keyed, GATEWAY)


def test_gateway_gets_no_key_but_its_own():
    for values, component, expected in (
        ("defaults", GATEWAY, {"gateway.secret", "gateway.public", "scheduler.public"}),
        ("defaults", ENGINE, {"scheduler.secret", "scheduler.public", "gateway.public"}),
    ):
        kind = {GATEWAY: "Deployment", ENGINE: "StatefulSet"}[component]
        spec = find(kind, component, values)["spec"]["template"]["spec"]
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "curve"]
        assert {item["key"] for item in volume["secret"]["items"]} == expected


def test_gateway_service():
    service = find("Service", GATEWAY, "defaults")["spec"]
    assert service["selector"] == labels(GATEWAY)
    assert {port["name"]: port["port"] for port in service["ports"]} == {"grpc": 50051, "http": 8000}
    secure = find("Service", GATEWAY, "mtls")["spec"]
    assert {port["name"]: port.get("appProtocol") for port in secure["ports"]} == {"grpc": None, "http": "https"}


def test_gateway_headless_service():
    service = find("Service", "gateway-headless", "defaults")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == labels(GATEWAY)
    # Prometheus would count gateways twice if its monitor selected this service too.
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] != GATEWAY


def test_gateway_autoscaler():
    spec = find("HorizontalPodAutoscaler", GATEWAY, "autoscaled")["spec"]
    assert {metric["type"] for metric in spec["metrics"]} == {"ContainerResource", "Pods"}
    assert spec["scaleTargetRef"]["name"] == find("Deployment", GATEWAY, "autoscaled")["metadata"]["name"]
    assert "replicas" not in find("Deployment", GATEWAY, "autoscaled")["spec"]
    assert not has("HorizontalPodAutoscaler", "defaults")


@pytest.mark.parametrize("component", [GATEWAY, ENGINE])
def test_disruption_budget(component):
    spec = find("PodDisruptionBudget", component, "defaults")["spec"]
    assert spec == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": labels(component)},
    }
    assert not has("PodDisruptionBudget", "defaults", "gateway.podDisruptionBudget.enabled=false",
                   "engine.podDisruptionBudget.enabled=false")  # fmt: skip


def test_certificate():
    spec = find("Certificate", GATEWAY, "mtls")["spec"]
    assert spec["issuerRef"] == {"name": "internal", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert spec["secretName"] == "llm-pagewire-tls"
    assert {"llm-pagewire-gateway.serving.svc.cluster.local", "llm-pagewire-gateway-headless", "llm.example"} <= set(
        spec["dnsNames"]
    )
    assert "server auth" in spec["usages"]
    assert not has("Certificate", "defaults")


def test_gateway_network_policy():
    spec = find("NetworkPolicy", GATEWAY, "mtls")["spec"]
    assert spec["podSelector"]["matchLabels"] == labels(GATEWAY)
    ingress, watched = spec["ingress"]
    assert [port["port"] for port in ingress["ports"]] == ["grpc", "http"]
    assert watched == {
        "ports": [{"port": "http"}],
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    assert ingress["from"] == [
        {"namespaceSelector": {"matchLabels": {"team": "search"}}},
        {"podSelector": {"matchLabels": labels("test")}},
    ]
    reached = {port["port"]: rule.get("to") for rule in spec["egress"] for port in rule["ports"]}
    assert reached[5555] == [{"podSelector": {"matchLabels": labels(ENGINE)}}]
    assert 443 not in reached
    assert "from" not in find("NetworkPolicy", GATEWAY, "defaults")["spec"]["ingress"][0]
    elsewhere = "gateway.schedulerAddresses={tcp://10.0.0.7:5555,tcp://[fd00::7]:6000,dns+tcp://engines.llm:6000}"
    rules = find("NetworkPolicy", GATEWAY, "mtls", elsewhere)["spec"]["egress"]
    assert {"ports": [{"port": 5555}, {"port": 6000}]} in rules
    asked = [port for port in reached if port == 53]
    assert asked, "names cannot be looked up"
    traced = find("NetworkPolicy", GATEWAY, "one-gpu")["spec"]["egress"]
    assert {"port": 4318} in [port for rule in traced for port in rule["ports"]]


def test_engine_network_policy():
    spec = find("NetworkPolicy", ENGINE, "mtls")["spec"]
    requests, metrics = spec["ingress"]
    assert requests == {
        "ports": [{"port": "requests"}],
        "from": [{"podSelector": {"matchLabels": labels(GATEWAY)}}],
    }
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_engine_worker_network_policy():
    spec = find("NetworkPolicy", "engine-worker", "multi-host")["spec"]
    group = [{"podSelector": {"matchLabels": labels(part)}} for part in (ENGINE, "engine-worker")]
    assert spec["podSelector"]["matchLabels"] == labels("engine-worker")
    assert spec["ingress"] == [{"from": group}]
    leader = find("NetworkPolicy", ENGINE, "multi-host")["spec"]
    assert {"from": group[1:]} in leader["ingress"]
    assert [m for m in find("NetworkPolicy", ENGINE, "defaults")["spec"]["ingress"] if "ports" not in m] == []


def test_engine_stateful_set():
    manifest = find("StatefulSet", ENGINE, "tensor-parallel")
    spec, pod = manifest["spec"], manifest["spec"]["template"]
    assert spec["serviceName"] == "llm-pagewire-scheduler"
    assert spec["minReadySeconds"] == 30
    worker = container(pod, "worker")
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert "--ranks=4" in worker["args"]
    assert worker["image"].endswith("@sha256:" + "0123456789abcdef" * 4)
    assert worker["startupProbe"]["periodSeconds"] * worker["startupProbe"]["failureThreshold"] == 3600
    assert worker["livenessProbe"]["grpc"] == {"port": 8087, "service": "liveness"}
    (shm,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert pod["spec"]["priorityClassName"] == "serving"
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub-token", "key": "token"}}} in container(
        pod, "fetch-model"
    )["env"]


def test_engine_stateful_set_on_a_cpu_has_no_gpu_and_no_kernels_to_copy():
    pod = find("StatefulSet", ENGINE, "cpu-demo")["spec"]["template"]
    assert set(container(pod, "worker")["resources"]["limits"]) == {"memory"}
    assert [c["name"] for c in pod["spec"]["initContainers"]] == ["fetch-model"]


def test_engine_stateful_set_with_runtime_class_and_tolerations():
    spec = find("StatefulSet", ENGINE, "one-gpu")["spec"]["template"]["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    (models,) = [volume for volume in spec["volumes"] if volume["name"] == "models"]
    assert models["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_leader_worker_set():
    manifest = find("LeaderWorkerSet", ENGINE, "multi-host")
    assert manifest["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    spec = manifest["spec"]
    assert set(spec) == {"replicas", "startupPolicy", "rolloutStrategy", "leaderWorkerTemplate"}
    group = spec["leaderWorkerTemplate"]
    assert (spec["replicas"], group["size"], group["restartPolicy"]) == (2, 2, "None")
    leader, worker = group["leaderTemplate"], group["workerTemplate"]
    assert [c["name"] for c in leader["spec"]["containers"]] == ["scheduler", "worker"]
    assert [c["name"] for c in worker["spec"]["containers"]] == ["worker"]
    assert is_selected(leader, labels(ENGINE))
    assert is_selected(worker, labels("engine-worker"))
    assert container(worker, "worker")["resources"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": 8, "rdma/ib": 8}
    assert "--worker-address=tcp://0.0.0.0:5556" in arguments(leader, "scheduler")
    assert "--scheduler-address=tcp://$(LWS_LEADER_ADDRESS):5556" in arguments(worker, "worker")
    (curve,) = [volume for volume in worker["spec"]["volumes"] if volume["name"] == "curve"]
    assert {item["key"] for item in curve["secret"]["items"]} == {"worker.secret", "worker.public", "scheduler.public"}
    assert not has("StatefulSet", "multi-host")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("engine.multiHost.hosts=3", "16 ranks cannot be split evenly over 3 hosts"),
        ("model.source=hub,model.hub.cacheOnClaim=true", "pods of several hosts .* have no claims of their own"),
    ],
)
def test_leader_worker_set_that_cannot_be(value, problem):
    file = str(CHART / "ci" / "multi-host.yaml")
    done = helm(HELM_4, "template", "llm", str(CHART), "--values", file, "--set", value)
    assert done.returncode != 0
    assert re.search(problem, done.stderr)


@pytest.mark.parametrize("values", VALUE_FILES)
def test_scheduler_service(values):
    service = find("Service", "scheduler", values)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    engines = [pod for pod in pods(values) if is_selected(pod, service["selector"])]
    assert len(engines) == 1
    named = {p["name"]: p["containerPort"] for c in engines[0]["spec"]["containers"] for p in c["ports"]}
    assert {p["targetPort"]: p["port"] for p in service["ports"]}.items() <= named.items()
    gateway = find("Deployment", GATEWAY, values)["spec"]["template"]
    address = "--scheduler-address=dns+tcp://llm-pagewire-scheduler.serving.svc.cluster.local.:5555"
    assert address in arguments(gateway, GATEWAY)


def test_gateway_with_engines_elsewhere():
    elsewhere = "gateway.schedulerAddresses={tcp://10.0.0.7:5555,tcp://[fd00::7]:6000,dns+tcp://engines.llm:6000}"
    gateway = find("Deployment", GATEWAY, "defaults", elsewhere)["spec"]["template"]
    assert [part for part in arguments(gateway, GATEWAY) if part.startswith("--scheduler-address")] == [
        "--scheduler-address=tcp://10.0.0.7:5555",
        "--scheduler-address=tcp://[fd00::7]:6000",
        "--scheduler-address=dns+tcp://engines.llm:6000",
    ]


@pytest.mark.parametrize("policy", RoutingPolicy)
def test_gateway_routes_as_it_is_told(policy):
    pod = find("Deployment", GATEWAY, "defaults", f"gateway.routing={policy}")["spec"]["template"]
    assert f"--routing={policy}" in arguments(pod, GATEWAY)


def test_scaled_object():
    spec = find("ScaledObject", ENGINE, "autoscaled")["spec"]
    target = find("StatefulSet", ENGINE, "autoscaled")
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": target["metadata"]["name"],
    }
    assert "replicas" not in target["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"]["serverAddress"] == "http://prometheus.monitoring:9090"
    assert (
        'vllm:num_requests_waiting{namespace="serving",service="llm-pagewire-scheduler"}'
        in trigger["metadata"]["query"]
    )
    assert isinstance(trigger["metadata"]["threshold"], str)
    several = find("ScaledObject", ENGINE, "multi-host", "engine.autoscaling.enabled=true",
                   "engine.autoscaling.prometheusAddress=http://p")  # fmt: skip
    assert several["spec"]["scaleTargetRef"]["kind"] == "LeaderWorkerSet"


@pytest.mark.parametrize(
    ("component", "service", "port"), [(GATEWAY, GATEWAY, "http"), (ENGINE, "scheduler", "metrics")]
)
def test_service_monitor(component, service, port):
    manifest = find("ServiceMonitor", component, "autoscaled")
    assert manifest["metadata"]["labels"]["release"] == "prometheus"
    selected = find("Service", service, "autoscaled")
    assert manifest["spec"]["selector"]["matchLabels"].items() <= selected["metadata"]["labels"].items()
    (endpoint,) = manifest["spec"]["endpoints"]
    assert endpoint.items() >= {"port": port, "path": "/metrics", "interval": "15s"}.items()
    assert port in {port["name"] for port in selected["spec"]["ports"]}
    assert not has("ServiceMonitor", "defaults")


def test_service_monitor_with_mtls():
    (endpoint,) = find("ServiceMonitor", GATEWAY, "mtls")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["cert"] == {"secret": {"name": "prometheus-cert", "key": "tls.crt"}}
    assert endpoint["tlsConfig"]["keySecret"] == {"name": "prometheus-cert", "key": "tls.key"}
    assert endpoint["tlsConfig"]["serverName"] in find("Certificate", GATEWAY, "mtls")["spec"]["dnsNames"]


def test_dashboard():
    manifest = find("ConfigMap", "dashboard", "autoscaled")
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
    shipped = json.loads((CHART / "dashboards" / "pagewire.json").read_text())
    assert json.loads(manifest["data"]["pagewire.json"]) == shipped


def test_engine_metrics_are_counted_once():
    """Gateways tell them where an endpoint picker asks for them, and Prometheus then leaves those out."""
    told = "--no-engine-metrics"
    assert told in arguments(find("Deployment", GATEWAY, "defaults")["spec"]["template"], GATEWAY)
    assert told not in arguments(find("Deployment", GATEWAY, "autoscaled")["spec"]["template"], GATEWAY)
    (endpoint,) = find("ServiceMonitor", GATEWAY, "autoscaled")["spec"]["endpoints"]
    assert endpoint["metricRelabelings"] == [{"sourceLabels": ["engine"], "regex": ".+", "action": "drop"}]
    (secure,) = find("ServiceMonitor", GATEWAY, "mtls")["spec"]["endpoints"]
    assert "metricRelabelings" not in secure


def test_inference_pool():
    manifest = find("InferencePool", "", "autoscaled")
    assert manifest["apiVersion"] == "inference.networking.k8s.io/v1"
    assert manifest["spec"] == {
        "selector": {"matchLabels": labels(GATEWAY)},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "picker", "port": {"number": 9002}, "failureMode": "FailOpen"},
    }


def test_service_account():
    account = find("ServiceAccount", "", "defaults")
    assert account["automountServiceAccountToken"] is False
    for pod in pods("defaults"):
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert not has("ServiceAccount", "defaults", "serviceAccount.create=false")


def test_smoke_test():
    pod = find("Pod", "smoke", "one-gpu")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    environment = {entry["name"]: entry for entry in container(pod, "smoke")["env"]}
    assert environment["PAGEWIRE_ADDRESS"]["value"] == "llm-pagewire-gateway.serving.svc.cluster.local:50051"
    assert environment["PAGEWIRE_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "smoke-key", "key": "key"}
    secure = {entry["name"] for entry in container(find("Pod", "smoke", "mtls"), "smoke")["env"]}
    assert {"PAGEWIRE_TLS_CA", "PAGEWIRE_TLS_CERT", "PAGEWIRE_TLS_KEY"} <= secure


def test_chaos_job_may_delete_pods_and_nothing_else():
    pod = find("Job", "chaos", "autoscaled")["spec"]["template"]
    role, binding = find("Role", "chaos", "autoscaled"), find("RoleBinding", "chaos", "autoscaled")
    account = find("ServiceAccount", "chaos", "autoscaled")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "delete"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"] == pod["spec"]["serviceAccountName"]
    assert pod["spec"]["automountServiceAccountToken"] is True
    script = find("ConfigMap", "chaos", "autoscaled")["data"]["chaos.py"]
    ast.parse(script)
    assert script.strip() == (CHART / "files" / "chaos.py").read_text().strip()
    assert not has("Job", "defaults")
