"""docker/compose.yaml brought up under another project's name, with secrets of its own: for make stack-test."""

import contextlib
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tasks.settings import PROJECT
from tests import running

DOCKER = PROJECT / "docker"
NAME = "vitrine-test"
# Run in the container of moto's server, which takes any credentials.
S3 = """
import boto3, io, sys, tarfile
s3 = boto3.client("s3", "us-east-1", endpoint_url="http://127.0.0.1:9000", aws_access_key_id="any", aws_secret_access_key="any")
"""
COPY_OUT = f"""{S3}
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=sys.argv[1]):
        for one in page.get("Contents", ()):
            data = s3.get_object(Bucket=sys.argv[1], Key=one["Key"])["Body"].read()
            entry = tarfile.TarInfo(one["Key"])
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
"""
COPY_IN = f"""{S3}
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    for entry in tar:
        s3.put_object(Bucket=sys.argv[1], Key=entry.name, Body=tar.extractfile(entry).read())
"""
DUMP = "PGPASSWORD=$POSTGRES_PASSWORD pg_dumpall -h 127.0.0.1 -U postgres --clean --if-exists"
LOAD = "PGPASSWORD=$POSTGRES_PASSWORD psql -q -h 127.0.0.1 -U postgres -d postgres"


def until(condition: Any, what: str, limit_s: float = 1800) -> None:
    running.until(condition, what, limit_s=limit_s)


@dataclass(frozen=True)
class Backup:
    """What docs/operate/backup.md has saved: a dump of all databases, and a tar of the objects of each bucket, by its name."""

    databases: bytes
    buckets: dict[str, bytes]


class ComposeStack:
    """`CONTAINER compose` (docker, podman, or a command that takes their arguments) with the ports SEARCH_PORT, MLFLOW_PORT, AIRFLOW_PORT,
    PROMETHEUS_PORT.

    STANDINS: the images out of Debian's packages. PROFILE: minimal, full (embeds on its Spark) or gpu. WITHOUT: services to leave out.
    """

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        subprocess.run([str(DOCKER / "make-secrets"), str(folder / "env")], check=True)
        self.secrets = dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())
        images = (DOCKER / "standins" / "images.env").read_text().replace("${TAG:-latest}", os.environ.get("TAG") or "latest")
        stand_ins = images.split() if os.environ.get("STANDINS") else []
        (folder / "settings.env").write_text("".join(f"{k}={v}\n" for k, v in (settings or {}).items()))
        self.environment = os.environ | dict(s.split("=", 1) for s in stand_ins) | {"SETTINGS": str(folder / "settings.env")}
        self.container = shlex.split(os.environ.get("CONTAINER") or "docker")
        self.profile = os.environ.get("PROFILE") or "minimal"
        self.without = os.environ.get("WITHOUT", "").split()
        if self.profile == "full":
            self.environment["SPARK_MASTER"] = "spark://spark:7077"
        usual = {"SEARCH": "8000", "MLFLOW": "5000", "AIRFLOW": "8080", "PROMETHEUS": "9090"}
        ports = {name: os.environ.get(f"{name}_PORT", port) for name, port in usual.items()}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def compose(self, *words: str, given: bytes = b"") -> bytes:
        """Runs a command of compose with `given` as its input; what it printed. Fails with its last words."""
        files = ["compose", "--env-file", str(self.folder / "env"), "-f", str(DOCKER / "compose.yaml"), "-p", NAME]
        command = [*self.container, *files, "--profile", self.profile, *words]
        ran = subprocess.run(command, env=self.environment, capture_output=True, input=given, cwd=PROJECT)
        assert ran.returncode == 0, f"{words}\n{ran.stdout[-3000:]!r}\n{ran.stderr.decode()[-3000:]}"
        return ran.stdout

    def up(self, *services: str) -> None:
        """Starts the services that are named, or all but those of WITHOUT."""
        if self.without and not services:
            services = tuple(s for s in self.compose("config", "--services").decode().split() if s not in self.without)
        self.compose("up", "-d", *services)

    def search(self, photo: bytes) -> httpx.Response:
        """A photo asked through the load balancer."""
        return httpx.post(f"{self.urls['SEARCH']}/v1/search", files={"image": photo}, timeout=30, trust_env=False)

    def live(self) -> str:
        """The version that the load balancer's address serves; "" for none."""
        with contextlib.suppress(httpx.HTTPError, KeyError, TypeError, ValueError):
            return str(httpx.get(f"{self.urls['SEARCH']}/v1/version", timeout=5, trust_env=False).json()["live"]["version"])
        return ""

    def backup(self, *buckets: str) -> Backup:
        """The databases first, then the objects."""
        databases = self.compose("exec", "-T", "postgres", "sh", "-c", DUMP)
        return Backup(
            databases, {b: self.compose("exec", "-T", "s3", "/opt/moto/bin/python", "-c", COPY_OUT, b) for b in buckets}
        )

    def delete_and_restore(self, backup: Backup, *services: str) -> None:
        """Deletes every volume, brings back the databases and the objects, then starts the services that are named, or all."""
        self.compose("down", "-v")
        self.up("postgres", "s3", "s3-buckets")
        until(self.postgres_answers, "PostgreSQL answers", limit_s=300)
        self.compose("exec", "-T", "postgres", "sh", "-c", LOAD, given=backup.databases)
        for bucket, objects in backup.buckets.items():
            self.compose("exec", "-T", "s3", "/opt/moto/bin/python", "-c", COPY_IN, bucket, given=objects)
        self.up(*services)

    def postgres_answers(self) -> bool:
        try:
            return b"1 row" in self.compose("exec", "-T", "postgres", "sh", "-c", f"{LOAD} -c 'SELECT 1'")
        except AssertionError:
            return False
