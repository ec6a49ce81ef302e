"""docker/kubernetes against Kubernetes' own schemas and checkov, which are installed into build/kubernetes: make e2e-kubernetes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.settings import PROJECT
from tests.docker.test_kubernetes import FOLDER, OVERLAYS

pytestmark = pytest.mark.e2e
TOOLS = PROJECT / "build" / "kubernetes"
PACKAGES = ("kubernetes-validate==1.37.0", "checkov==3.3.30")
VERSIONS = ("1.30", "1.37")
SKIPPED = {
    "CKV_K8S_11": "a limit of CPU throttles, which is what a p99 is made of",
    "CKV_K8S_35": "MLflow's client reads its password from the environment",
}


@pytest.fixture(scope="module")
def tools() -> Path:
    uv = shutil.which("uv") or str(PROJECT / "build" / "uv" / "bin" / "uv")
    if not (TOOLS / "bin" / "checkov").exists():
        subprocess.run([uv, "venv", "-q", "--python", "3.11", str(TOOLS)], check=True)
        subprocess.run([uv, "pip", "install", "-q", *PACKAGES], check=True, env=os.environ | {"VIRTUAL_ENV": str(TOOLS)})
    return TOOLS / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    for overlay in OVERLAYS:
        ran = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], check=True, capture_output=True, text=True)
        (folder / f"{overlay.replace('/', '-')}.yaml").write_text(ran.stdout)
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_in_kubernetes(tools: Path, folder: Path, version: str) -> None:
    files = [str(f) for f in sorted(folder.glob("*.yaml"))]
    ran = subprocess.run([tools / "kubernetes-validate", "-k", version, "--strict", *files], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (ran.stdout + ran.stderr).count("passed for resource") > 30


def test_checkov_finds_nothing(tools: Path, folder: Path) -> None:
    ran = subprocess.run(
        [tools / "checkov", "-d", str(folder), "--framework", "kubernetes", "-o", "json", "--skip-check", ",".join(SKIPPED)],
        capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(ran.stdout)
    assert found["summary"]["passed"] > 500
    assert [f"{c['check_id']} {c['resource']}" for c in found["results"]["failed_checks"]] == []
