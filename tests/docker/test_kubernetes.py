"""docker/kubernetes: what the overlays render to, and the scalers, budgets and policies of each deployment.

`make e2e-kubernetes` validates the same against Kubernetes' own schemas and with checkov.
"""

import re
import shutil
import subprocess
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.settings import PROJECT
from tests.docker.test_airflow_values import airflow_values

FOLDER = PROJECT / "docker" / "kubernetes"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "batch", "ingress")
GIB = 2**30
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def rendered(overlay: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    ran = subprocess.run(["kubectl", "kustomize", str(folder / overlay)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d["spec"] for d in rendered(overlay) if d["kind"] == kind}


def shared_settings(overlay: str) -> dict[str, str]:
    (found,) = (d["data"] for d in rendered(overlay) if d["kind"] == "ConfigMap" and "VITRINE_DRAIN_S" in d["data"])
    return dict(found)


def alert_rules() -> dict[str, Any]:
    return dict(of_kind("overlays/cpu", "PrometheusRule")["vitrine"])


def gib(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_has_an_image_by_digest_requests_and_no_rights(overlay: str) -> None:
    for name, spec in of_kind(overlay, "Deployment").items():
        pod = spec["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, f"{name}: a Service called vitrine would set VITRINE_PORT"
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert re.fullmatch(r"registry\.example/vitrine-\w+@sha256:[0-9a-f]{64}", container["image"]), name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["readinessProbe"]
            assert container["livenessProbe"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_scaler_scales_what_is_there_and_nobody_else_sets_the_number_of_pods(overlay: str) -> None:
    deployments, scalers = of_kind(overlay, "Deployment"), of_kind(overlay, "ScaledObject")
    for name, spec in scalers.items():
        assert spec["scaleTargetRef"] == {"name": name}
        assert "replicas" not in deployments[name]
        assert spec["minReplicaCount"] < spec["maxReplicaCount"]
        if name != "vitrine-spark-worker":
            assert spec["fallback"]["behavior"] == "currentReplicasIfHigher", "a fleet must not shrink while Prometheus is away"
            assert spec["fallback"]["replicas"] >= spec["minReplicaCount"]
    assert deployments.keys() - scalers.keys() <= {"vitrine-spark"}


@pytest.mark.parametrize("overlay", OVERLAYS[:2])
def test_every_serving_deployment_has_a_budget_and_is_spread_over_nodes_and_zones(overlay: str) -> None:
    budgets = of_kind(overlay, "PodDisruptionBudget")
    drain_s = int(shared_settings(overlay)["VITRINE_DRAIN_S"])
    for name, spec in of_kind(overlay, "Deployment").items():
        assert budgets[name]["selector"] == spec["selector"]
        spread = spec["template"]["spec"]["topologySpreadConstraints"]
        assert [s["topologyKey"] for s in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        assert {s["whenUnsatisfiable"] for s in spread} == {"ScheduleAnyway"}, "a tainted or full node must not keep pods pending"
        pod = spec["template"]["spec"]
        assert drain_s > 0
        assert drain_s + 10 < pod["terminationGracePeriodSeconds"], "a replica ends its requests within ten seconds of the drain"


def test_gateways_may_be_as_many_as_sizing_says() -> None:
    page = (PROJECT / "docs" / "operate" / "sizing.md").read_text()
    most = max(int(n) for n in re.findall(r"(\d+) gateways", page))
    assert of_kind("overlays/cpu", "ScaledObject")["vitrine-gateway"]["maxReplicaCount"] > most


def test_scalers_ask_for_metrics_that_exist_and_by_the_documented_targets() -> None:
    gateway = create_app(ServingSettings(role="gateway", shard_urls=("http://127.0.0.1:1",))).state.replica.metrics
    shard = create_app(ServingSettings(role="shard", shards=("0",))).state.server.metrics
    known = {m.name for metrics in (gateway, shard) for m in metrics.registry.collect()}
    for overlay in OVERLAYS[:2]:
        for spec in of_kind(overlay, "ScaledObject").values():
            for trigger in spec["triggers"]:
                for name in re.findall(r"vitrine_\w+", trigger["metadata"]["query"]):
                    assert re.sub(r"_(bucket|total)$", "", name) in known, name
    gpu = of_kind("overlays/gpu", "ScaledObject")["vitrine-gateway"]["triggers"][0]["metadata"]
    assert re.findall(r"GPU_UTIL\{(\w+)=~", gpu["query"]) == ["exported_pod", "pod"], "without and with honorLabels"
    assert gpu["threshold"] == "70"
    for name, spec in of_kind("overlays/cpu", "ScaledObject").items():
        waiting, *slow = (t["metadata"]["query"] for t in spec["triggers"])
        assert "vitrine_busy" in waiting
        assert [q.startswith("clamp_max(histogram_quantile(0.99") for q in slow] == [True] * name.startswith("vitrine-shards")


def test_gateways_of_the_gpu_overlay_encode_on_a_gpu_and_shards_do_not() -> None:
    deployments = of_kind("overlays/gpu", "Deployment")
    for name, spec in deployments.items():
        container = spec["template"]["spec"]["containers"][0]
        settings = ServingSettings.load({e["name"]: e.get("value", "x") for e in container["env"]})
        on_gpu = name == "vitrine-gateway"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == on_gpu
        assert (settings.encoder_runtime == "onnxruntime-cuda") == on_gpu


def test_policies_let_only_gateways_and_prometheus_reach_shards() -> None:
    policies = of_kind("overlays/cpu", "NetworkPolicy")
    assert policies["vitrine-nothing-else"] == {
        "podSelector": {"matchLabels": {"app": "vitrine"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    (rule,) = policies["vitrine-shards"]["ingress"]
    assert rule["from"] == [
        {"podSelector": {"matchLabels": {"app": "vitrine", "role": "gateway"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]


def test_mlflow_may_tell_gateways_and_nothing_else_may_come_in_but_shoppers_promotions_and_scrapes() -> None:
    (rule,) = of_kind("overlays/cpu", "NetworkPolicy")["vitrine-gateway"]["ingress"]
    spaces = [f["namespaceSelector"]["matchLabels"].popitem()[1] for f in rule["from"] if "namespaceSelector" in f]
    pods = [f["podSelector"]["matchLabels"] for f in rule["from"] if "podSelector" in f]
    assert (spaces, pods) == (["ingress", "airflow", "monitoring"], [{"app": "mlflow"}])


def test_what_else_replicas_may_ask_is_a_patch_that_renders(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "cpu" / "kustomization.yaml"
    lines, patch = overlay.read_text().splitlines(keepends=True), False
    for i, line in enumerate(lines):
        patch = patch or line.startswith("  # - target:")
        lines[i] = line.replace("  # ", "  ", 1) if patch else line
    overlay.write_text("".join(lines))
    objects = rendered("overlays/cpu", tmp_path / "kubernetes")
    (out,) = (d["spec"]["egress"] for d in objects if d["metadata"]["name"] == "vitrine-out")
    assert out[:-1] == of_kind("overlays/cpu", "NetworkPolicy")["vitrine-out"]["egress"]
    assert {p["port"] for p in out[-1]["ports"]} == {443, 5432, 8000}


def test_spark_and_its_driver_reach_each_other_and_keda_reaches_the_master() -> None:
    policies = of_kind("batch", "NetworkPolicy")
    driver = policies["vitrine-spark-driver"]
    assert driver["podSelector"]["matchLabels"] == {"tier": "airflow", "component": "worker"}
    assert driver["ingress"] == [{"from": [{"podSelector": {"matchLabels": {"app": "vitrine-spark"}}}]}]
    (trigger,) = of_kind("batch", "ScaledObject")["vitrine-spark-worker"]["triggers"]
    (space,) = {d["metadata"]["namespace"] for d in rendered("batch") if d["kind"] == "Service"}
    assert trigger["metadata"]["url"] == f"http://vitrine-spark.{space}:8080/json/", "KEDA asks from a namespace of its own"


@pytest.mark.parametrize("overlay", OVERLAYS[:2])
def test_all_but_the_gateways_can_be_applied_first(overlay: str) -> None:
    """docs/operate/upgrade.md: `-l 'role!=gateway'`, since shards are replaced before gateways."""
    roles = {(d["kind"], d["metadata"]["name"]): d["metadata"].get("labels", {}).get("role") for d in rendered(overlay)}
    gateways = {("Deployment", "vitrine-gateway"), ("Service", "vitrine"), ("Service", "vitrine-gateways")}
    assert {what for what, role in roles.items() if role == "gateway"} == gateways
    assert {name for (kind, name), role in roles.items() if (kind, role) == ("Deployment", "shard")} == {
        "vitrine-shards-0-1", "vitrine-shards-2-3",
    }  # fmt: skip


def test_spark_and_airflows_workers_run_on_the_same_spot_nodes() -> None:
    pod, workers = of_kind("batch", "Deployment")["vitrine-spark-worker"]["template"]["spec"], airflow_values()["workers"]
    for key in ("tolerations", "nodeSelector"):
        assert workers[key] == pod[key]


def test_a_pod_holds_what_the_gates_let_through_and_is_told_of_before_it_is_full() -> None:
    """Ten million products, two versions at a time: docs/operate/sizing.md."""
    index, columns = 5.2, 2.6
    needed = {"gateway": 2 * columns + 0.4, "shard": 2 * (index + columns) / 2 + 0.4}
    (replica_mb,) = (float(e["value"]) for e in airflow_values()["env"] if e["name"] == "VITRINE_REPLICA_MB")
    assert (index + columns) * 1024 < replica_mb / 2
    (rule,) = (r for g in alert_rules()["groups"] for r in g["rules"] if r["alert"] == "VitrineMemoryHigh")
    told = {role: float(n) for role, n in re.findall(r'role="(\w+)"\} > 0\.9 \* (\d+) \* 2 \^ 30', rule["expr"])}
    for spec in of_kind("overlays/cpu", "Deployment").values():
        role = spec["template"]["metadata"]["labels"]["role"]
        assert needed[role] < gib(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]) == told[role]


def test_the_cache_and_a_version_beside_it_fit_into_the_volume() -> None:
    cache = int(shared_settings("overlays/cpu")["VITRINE_CACHE_BYTES"]) / GIB
    for name, spec in of_kind("overlays/cpu", "Deployment").items():
        pod = spec["template"]["spec"]
        (volume,) = (gib(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "cache")
        assert cache + 5.2 + 2.6 < volume <= gib(pod["containers"][0]["resources"]["limits"]["ephemeral-storage"]), name


def test_the_operators_alerts_are_those_of_prometheus() -> None:
    rules = (PROJECT / "docker" / "watching" / "alerts.yml").read_text()
    assert alert_rules() == yaml.safe_load(rules)
    written = (FOLDER / "base" / "alerts.yaml").read_text().partition("\nspec:\n")[2]
    assert written == textwrap.indent(rules[rules.index("groups:") :], "  "), "run the command at the head of base/alerts.yaml"


def test_the_ingress_lets_shoppers_ask_and_nobody_else() -> None:
    assert float(shared_settings("overlays/cpu")["VITRINE_ADDRESS_SHARE"]) == 1, "all shoppers come from the ingress' address"
    (rule,) = of_kind("ingress", "Ingress")["vitrine"]["rules"]
    paths = {p["path"]: p["pathType"] for p in rule["http"]["paths"]}
    routes = {r.path for r in create_app(ServingSettings()).routes if hasattr(r, "path")}
    let_through = {r for r in routes if any(r == p or (kind == "Prefix" and r.startswith(p + "/")) for p, kind in paths.items())}
    assert {r for r in routes - let_through if r.startswith("/v1/")} == {"/v1/samples", "/v1/follow", "/v1/hooks/mlflow"}
    assert "/metrics" in routes - let_through
    assert set(paths) <= {"/v1/products", "/v1/images"} | let_through
    service = {p["backend"]["service"]["name"] for p in rule["http"]["paths"]}
    assert service <= of_kind("overlays/cpu", "Service").keys()
