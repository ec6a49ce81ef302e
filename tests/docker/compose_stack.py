"""docker/compose.yaml brought up under another project's name, with secrets of its own: for make stack-test."""

import contextlib
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tasks.settings import PROJECT
from tests import running

DOCKER = PROJECT / "docker"
NAME = "vitrine-test"


def until(condition: Any, what: str, limit_s: float = 1800) -> None:
    running.until(condition, what, limit_s=limit_s)


class ComposeStack:
    """`CONTAINER compose` (docker, podman, or a command that takes their arguments) with the ports SEARCH_PORT, MLFLOW_PORT, AIRFLOW_PORT.

    STANDINS: the images out of Debian's packages. PROFILE: minimal, full or gpu.
    """

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        subprocess.run([str(DOCKER / "make-secrets"), str(folder / "env")], check=True)
        self.secrets = dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())
        stand_ins = (DOCKER / "standins" / "images.env").read_text().split() if os.environ.get("STANDINS") else []
        (folder / "settings.env").write_text("".join(f"{k}={v}\n" for k, v in (settings or {}).items()))
        self.environment = os.environ | dict(s.split("=", 1) for s in stand_ins) | {"SETTINGS": str(folder / "settings.env")}
        self.container = shlex.split(os.environ.get("CONTAINER") or "docker")
        self.profile = os.environ.get("PROFILE") or "minimal"
        ports = {n: os.environ.get(f"{n}_PORT", p) for n, p in (("SEARCH", "8000"), ("MLFLOW", "5000"), ("AIRFLOW", "8080"))}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def compose(self, *words: str, given: bytes = b"") -> bytes:
        """Runs a command of compose with `given` as its input; what it printed. Fails with its last words."""
        files = ["compose", "--env-file", str(self.folder / "env"), "-f", str(DOCKER / "compose.yaml"), "-p", NAME]
        command = [*self.container, *files, "--profile", self.profile, *words]
        ran = subprocess.run(command, env=self.environment, capture_output=True, input=given, cwd=PROJECT)
        assert ran.returncode == 0, f"{words}\n{ran.stdout[-3000:]!r}\n{ran.stderr.decode()[-3000:]}"
        return ran.stdout

    def search(self, photo: bytes) -> httpx.Response:
        """A photo asked through the load balancer."""
        return httpx.post(f"{self.urls['SEARCH']}/v1/search", files={"image": photo}, timeout=30, trust_env=False)

    def live(self) -> str:
        """The version that the load balancer's address serves; "" for none."""
        with contextlib.suppress(httpx.HTTPError, KeyError, TypeError, ValueError):
            return str(httpx.get(f"{self.urls['SEARCH']}/v1/version", timeout=5, trust_env=False).json()["live"]["version"])
        return ""
