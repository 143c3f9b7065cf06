"""The manifests of deploy/kubernetes: built by kubectl, valid by the schemas of several releases, and what
they promise (SPEC O7).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from packhorse.worker.config import Settings, load_settings
from packhorse.worker.fleet.supervisor import KILL_MARGIN_SECONDS
from packhorse.worker.ops import deploy_files
from packhorse.worker.web.app import ROUTES
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["dev", "production", "rabbitmq"]
#: Kinds of operators: no schema comes with Kubernetes; the tests below and test_operators.py read them.
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}
VERSIONS = ["1.27", "1.31", "1.34", "1.37"]

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (kubectl kustomize builds the overlays)"
)
_built: dict[str, list[dict[str, Any]]] = {}


def build(overlay: str) -> list[dict[str, Any]]:
    """Every object of an overlay, as `kubectl apply -k` would send it."""
    if overlay not in _built:
        done = subprocess.run(
            ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr, done.stderr
        _built[overlay] = list(yaml.safe_load_all(done.stdout))
    return _built[overlay]


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """By its name, or that with the hash of a generated one."""
    (found,) = [
        item
        for item in build(overlay)
        if item["kind"] == kind and re.fullmatch(f"{name}(-[a-z0-9]{{10}})?", item["metadata"]["name"])
    ]
    return found


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pod of every workload, by name."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in build(overlay)
        if item["kind"] in ("Deployment", "Job")
    }


def labels(overlay: str) -> dict[str, dict[str, str]]:
    return {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in build(overlay)
        if item["kind"] in ("Deployment", "Job")
    }


@needs_kubectl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_for_the_releases_of_kubernetes(overlay, version):
    for item in build(overlay):
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_command_writes_builds_the_same(tmp_path, overlay):
    deploy_files.write("kubernetes", tmp_path / "written")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "written/overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and list(yaml.safe_load_all(done.stdout)) == build(overlay), done.stderr


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_has_the_namespace_and_the_name_of_the_product(overlay):
    for item in build(overlay):
        assert item["metadata"]["namespace"].startswith("packhorse"), item["metadata"]["name"]
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "packhorse", item["metadata"]["name"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_no_privileges(overlay):
    for name, pod in pods(overlay).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, (
            name
        )
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_is_limited_to_what_was_asked_for_and_cpu_is_not_limited(overlay):
    for name, pod in pods(overlay).items():
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["limits"]["memory"] == resources["requests"]["memory"], name
            assert "cpu" not in resources["limits"] and resources["requests"]["cpu"], name


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_waits_longer_than_the_drain(overlay):
    defaults = {key: field.default for key, field in Settings.model_fields.items()}
    settings = one(overlay, "ConfigMap", "packhorse-settings")["data"]
    drain = float(settings.get("PACKHORSE_DRAIN_SECONDS", defaults["drain_seconds"]))
    for name, pod in pods(overlay).items():
        if name not in ("packhorse-migrate", "packhorse-web"):
            assert (
                pod["terminationGracePeriodSeconds"]
                > drain + defaults["call_deadline_seconds"] + KILL_MARGIN_SECONDS
            ), name


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_three_endpoints_on_the_metrics_port(overlay):
    settings = one(overlay, "ConfigMap", "packhorse-settings")["data"]
    running = set(pods(overlay)) - {"packhorse-migrate", "packhorse-web"}
    assert {"packhorse-worker", "packhorse-scheduler"} <= running
    for name in running:
        (container,) = pods(overlay)[name]["containers"]
        assert container["ports"] == [
            {"name": "metrics", "containerPort": int(settings["PACKHORSE_METRICS_PORT"])}
        ]
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert probes == {
            kind: {"path": path, "port": "metrics"}
            for kind, path in [("startup", "/startupz"), ("liveness", "/livez"), ("readiness", "/readyz")]
        }


@needs_kubectl
def test_the_page_is_asked_where_it_listens_and_lets_its_proxy_in(tmp_path):
    """Its settings are settings, its probes ask the route that lets a kubelet in, and the example of an
    ingress leads to its service."""
    data = one("production", "ConfigMap", "packhorse-web-settings")["data"]
    (container,) = pods("production")["packhorse-web"]["containers"]
    settings = load_settings({**data, "DATABASE_URL": "postgresql://worker@db/app"})
    assert container["args"] == ["web"] and container["ports"] == [
        {"name": "page", "containerPort": settings.web_port}
    ]
    assert settings.web_trusted_proxies and not settings.web_insecure
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/healthz"} <= {entry.path for entry in ROUTES if entry.role is None}
    service = one("production", "Service", "packhorse-web")
    ingress = yaml.safe_load((FOLDER / "components" / "web" / "ingress.example.yaml").read_text())
    for version in VERSIONS:
        kubernetes_validate.validate(ingress, version, strict=True)
    (rule,) = ingress["spec"]["rules"]
    assert (rule["host"],) == settings.web_hosts
    assert rule["http"]["paths"][0]["backend"]["service"] == {
        "name": service["metadata"]["name"],
        "port": {"name": service["spec"]["ports"][0]["name"]},
    }
    policy = one("production", "NetworkPolicy", "packhorse-web")["spec"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "page"}]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_settings(overlay, tmp_path):
    data = dict(one(overlay, "ConfigMap", "packhorse-settings")["data"])
    mounts = {
        mount["mountPath"]
        for pod in pods(overlay).values()
        for container in pod["containers"]
        for mount in container["volumeMounts"]
    }
    assert data.pop("PACKHORSE_DATABASE_URL_FILE").rsplit("/", 1)[0] in mounts
    (tmp_path / "database_url").write_text("postgresql://worker@db/app\n")
    load_settings({**data, "PACKHORSE_DATABASE_URL_FILE": str(tmp_path / "database_url")})


@needs_kubectl
def test_relay_and_workers_on_rabbitmq_have_its_url_and_its_ports(tmp_path):
    data = one("rabbitmq", "ConfigMap", "packhorse-rabbitmq-settings")["data"]
    (tmp_path / "amqp_url").write_text("amqps://rabbit/packhorse\n")
    settings = load_settings({**data, "PACKHORSE_AMQP_URL_FILE": str(tmp_path / "amqp_url")})
    assert settings.amqp_url is not None and settings.amqp_partitions == 16
    for name, arguments in [("relay", ["relay"]), ("worker-amqp", ["worker", "--broker", "amqp"])]:
        (container,) = pods("rabbitmq")[f"packhorse-{name}"]["containers"]
        assert container["args"] == arguments
        folder = data["PACKHORSE_AMQP_URL_FILE"].rsplit("/", 1)[0]
        assert folder in {mount["mountPath"] for mount in container["volumeMounts"]}
        one("rabbitmq", "PodDisruptionBudget", f"packhorse-{name}")
        (rule,) = one("rabbitmq", "NetworkPolicy", f"packhorse-{name}")["spec"]["egress"]
        assert [port["port"] for port in rule["ports"]] == [5671, 5672]
        monitored = one("rabbitmq", "PodMonitor", "packhorse")["spec"]["selector"]["matchExpressions"][0]
        assert name in monitored["values"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select(overlay):
    """Service, disruption budgets, network policy and pod monitor each match a pod; a typo would match none
    and say nothing.
    """
    for item in build(overlay):
        selector = item["spec"].get("selector") or item["spec"].get("podSelector") if "spec" in item else None
        if not selector or item["kind"] == "Job":
            continue
        wanted = selector.get("matchLabels", selector)
        matched = [
            name for name, found in labels(overlay).items() if set(wanted.items()) <= set(found.items())
        ]
        assert matched, (item["kind"], item["metadata"]["name"])


@needs_kubectl
def test_disruptions_take_one_pod_at_a_time_and_never_block_a_node():
    budgets = [item for item in build("production") if item["kind"] == "PodDisruptionBudget"]
    assert {item["metadata"]["name"] for item in budgets} == {"packhorse-worker", "packhorse-scheduler"}
    assert all(item["spec"]["maxUnavailable"] == 1 and "minAvailable" not in item["spec"] for item in budgets)


@needs_kubectl
def test_only_prometheus_and_keda_may_come_in():
    policy = one("production", "NetworkPolicy", "packhorse")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    assert rule["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == ["monitoring", "keda"]


@needs_kubectl
def test_keda_scales_the_worker_by_its_own_answer_and_has_a_fallback():
    scaled = one("production", "ScaledObject", "packhorse-worker")
    service = one("production", "Service", "packhorse-worker")
    worker = one("production", "Deployment", scaled["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in worker["spec"], "two owners of one number"
    (trigger,) = scaled["spec"]["triggers"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}:{service['spec']['ports'][0]['port']}"
    assert trigger["type"] == "metrics-api"
    assert trigger["metadata"] == {
        "url": f"http://{host}/scale",
        "valueLocation": "workers",
        "targetValue": "1",
    }
    assert scaled["spec"]["fallback"]["failureThreshold"] > 0 and scaled["spec"]["minReplicaCount"] > 0
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (
        behavior["scaleDown"]["stabilizationWindowSeconds"]
        > worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    )


def test_the_prometheus_rule_is_the_rule_file():
    rule = yaml.safe_load((FOLDER / "components" / "monitoring" / "prometheus-rule.yaml").read_text())
    assert rule["spec"] == yaml.safe_load(
        (ROOT / "deploy" / "prometheus" / "packhorse.rules.yml").read_text()
    ), "run `make rules`"


def test_there_are_no_secrets_in_the_manifests():
    for path in FOLDER.rglob("*.yaml"):
        for item in yaml.safe_load_all(path.read_text()):
            assert item["kind"] != "Secret" and not re.search("(postgresql|amqps?)://", json.dumps(item)), (
                path
            )


CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()


def test_the_image_is_built_in_stages_and_runs_the_command_as_pid_1_without_root():
    stages = re.split(r"^FROM ", CONTAINERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2 and "pip" not in stages[-1], "no tools in the last stage"
    user = re.search(r"^USER (\d+):(\d+)$", stages[-1], re.MULTILINE)
    assert user and int(user[1]) > 0
    assert re.search(r'^ENTRYPOINT \["packhorse"\]$', stages[-1], re.MULTILINE), "no shell in between"


def test_everything_that_the_image_copies_is_there():
    sources = [
        name
        for line in re.findall(r"^COPY (?!--)(.*)$", CONTAINERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert sources and [name for name in sources if not (ROOT / name).exists()] == []


@needs_kubectl
def test_the_pods_run_as_the_user_of_the_image():
    user = re.search(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE)
    assert user
    for name, pod in pods("production").items():
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
            int(user[1]),
            int(user[2]),
        ), name
