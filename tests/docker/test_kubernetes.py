"""docker/kubernetes: what the overlays render to, the scalers, budgets and policies of each deployment, and the values for Airflow's chart.

`make e2e-kubernetes` validates the same against Kubernetes' own schemas and with checkov.
"""

import re
import shutil
import subprocess
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import yaml

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.settings import PROJECT, Settings

FOLDER = PROJECT / "docker" / "kubernetes"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "batch")
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    ran = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d["spec"] for d in rendered(overlay) if d["kind"] == kind}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_has_an_image_by_digest_requests_and_no_rights(overlay: str) -> None:
    for name, spec in of_kind(overlay, "Deployment").items():
        pod = spec["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False, name
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
    assert deployments.keys() - scalers.keys() <= {"vitrine-spark"}


@pytest.mark.parametrize("overlay", OVERLAYS[:2])
def test_every_serving_deployment_has_a_budget_and_is_spread_over_nodes_and_zones(overlay: str) -> None:
    budgets = of_kind(overlay, "PodDisruptionBudget")
    (shared,) = (d["data"] for d in rendered(overlay) if d["kind"] == "ConfigMap" and "VITRINE_DRAIN_S" in d["data"])
    drain_s = int(shared["VITRINE_DRAIN_S"])
    for name, spec in of_kind(overlay, "Deployment").items():
        assert budgets[name]["selector"] == spec["selector"]
        keys = [s["topologyKey"] for s in spec["template"]["spec"]["topologySpreadConstraints"]]
        assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        pod = spec["template"]["spec"]
        assert drain_s > 0
        assert drain_s + 10 < pod["terminationGracePeriodSeconds"], "a replica ends its requests within ten seconds of the drain"


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
    assert "GPU_UTIL" in gpu["query"]
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


def test_values_of_airflows_chart_name_settings_that_exist_and_no_secret() -> None:
    text = (FOLDER / "airflow-values.yaml").read_text()
    values = yaml.safe_load(text)
    known = {f"VITRINE_{f.name.upper()}" for f in fields(Settings)}
    assert {e["name"] for e in values["env"] if not e["name"].startswith("MLFLOW_")} <= known
    assert not re.search(
        r"(?i)(password|token|secret)[\w-]*: *['\"]?\w{8,}['\"]?$", re.sub(r"SecretName: .*", "", text), re.MULTILINE
    )
    assert values["executor"] == "CeleryExecutor"
    assert not values["postgresql"]["enabled"]
    assert (
        values["workers"]["tolerations"]
        == of_kind("batch", "Deployment")["vitrine-spark-worker"]["template"]["spec"]["tolerations"]
    )
