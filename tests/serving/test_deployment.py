"""The files that run serving elsewhere say what this code understands: settings, ports, probes, metrics."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from serving.api.shard_app import create_shard_app
from serving.app import create_app
from serving.settings import ServingSettings
from serving.versions.version_source import FolderSource

DOCKER = Path(__file__).parents[2] / "docker"
SETTINGS = {f"VITRINE_{f.name.upper()}" for f in fields(ServingSettings)}


def kubernetes() -> list[dict]:
    """Every object of the base, before an overlay names images and namespace."""
    files = sorted((DOCKER / "kubernetes" / "base").glob("*.yaml"))
    return [d for f in files if f.name != "kustomization.yaml" for d in yaml.safe_load_all(f.read_text())]


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.serving.yaml").read_text())


def environments() -> dict[str, dict[str, str]]:
    """The environment of every serving process, as both files set it."""
    shared = next(d["data"] for d in kubernetes() if d["kind"] == "ConfigMap")
    found = {}
    for one in kubernetes():
        if one["kind"] == "Deployment":
            container = one["spec"]["template"]["spec"]["containers"][0]
            found[one["metadata"]["name"]] = shared | {e["name"]: e.get("value", "from a secret") for e in container["env"]}
    services = {f"compose {n}": s["environment"] for n, s in compose()["services"].items() if "environment" in s}
    return found | services


@pytest.mark.parametrize("name", sorted(environments()))
def test_every_process_starts_with_the_settings_it_is_given(name: str, tmp_path: Path) -> None:
    environ = environments()[name]
    assert {v for v in environ if not v.startswith("MLFLOW_")} <= SETTINGS
    settings = ServingSettings.load(environ)
    create_app(settings, FolderSource(tmp_path))
    assert settings.role in ("shard", "gateway")


def test_all_shards_are_held_and_found() -> None:
    for kind in ("vitrine-shards", "compose shard"):
        held = [s for n, e in environments().items() if n.startswith(kind) for s in e["VITRINE_SHARDS"].split(",")]
        assert sorted(map(int, held)) == list(range(len(held)))
    services = {d["metadata"]["name"]: d["spec"] for d in kubernetes() if d["kind"] == "Service"}
    urls = environments()["vitrine-gateway"]["VITRINE_SHARD_URLS"]
    assert urls == f"http://vitrine-shards:{services['vitrine-shards']['ports'][0]['port']}"
    assert services["vitrine-shards"]["clusterIP"] == "None"


def test_selectors_choose_the_pods_of_their_own_file_and_probes_ask_routes_that_are_there(tmp_path: Path) -> None:
    deployments = [d["spec"] for d in kubernetes() if d["kind"] == "Deployment"]
    labels = [d["template"]["metadata"]["labels"] for d in deployments]
    for one in kubernetes():
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), one["metadata"]["name"]
    whole = create_app(ServingSettings(), FolderSource(tmp_path))
    shard = create_shard_app(ServingSettings(role="shard", shards=("0",)), FolderSource(tmp_path))
    for spec in deployments:
        container = spec["template"]["spec"]["containers"][0]
        paths = {container[f"{p}Probe"]["httpGet"]["path"] for p in ("startup", "liveness", "readiness")}
        for app in (whole, shard):
            assert paths <= set(app.openapi()["paths"])
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_dashboard_shows_metrics_that_exist(tmp_path: Path) -> None:
    (tmp_path / "aliases.json").write_text("{}")
    chosen = {"release": str(tmp_path), "role": "gateway", "shard_urls": ("http://127.0.0.1:1",)}
    replica = create_app(ServingSettings(**chosen)).state.replica  # type: ignore[arg-type]
    shard = create_app(ServingSettings(release=str(tmp_path), role="shard", shards=("0",))).state.server
    known = {m.name for metrics in (replica.metrics, shard.metrics) for m in metrics.registry.collect()}
    panels = json.loads((DOCKER / "watching" / "serving.json").read_text())["panels"]
    asked = {name for p in panels for t in p["targets"] for name in re.findall(r"vitrine_\w+", t["expr"])}
    missing = {n for n in asked if n not in known and re.sub(r"_(total|bucket|sum|count)$", "", n) not in known}
    assert len(asked) >= 15
    assert missing == set()
