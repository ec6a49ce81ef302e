"""MLflow as platform teams run it: PostgreSQL behind, artifacts in S3 without its proxy, its own authentication, nginx with a path
prefix in front. The pipeline registers and promotes, replicas serve, and MLflow is killed in the middle of a promotion.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import psycopg
import pytest

from serving.versions.slots import Slots
from serving.versions.version_source import MlflowSource
from tasks.demo.services import process_environment
from tasks.registry import INDEX_MODEL, Registry
from tasks.settings import PROJECT, Settings
from tests.registered import TOKEN, Running, Shop, replicas
from tests.running import answers, until
from tests.servers import free_port, postgres_server, s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

PASSWORD, BUCKET, PREFIX = "a password of the tests", "models", "/platform/mlflow"


@dataclass
class Mlflow:
    """The server, which may be killed and started again, and the nginx before it."""

    command: list[str]
    environment: dict[str, str]
    home: Path
    port: int
    address: str
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.home / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True, cwd=self.home
            )
        until(lambda: answers(f"{self.address}/health"), "MLflow answers", limit_s=180)

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    home, port, front = tmp_path_factory.mktemp("mlflow"), free_port(), free_port()
    environment = pytest.MonkeyPatch()
    with ExitStack() as stack:
        stack.callback(environment.undo)
        postgres = stack.enter_context(postgres_server())
        s3 = stack.enter_context(s3_server(BUCKET))
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": s3, "AWS_ENDPOINT_URL": s3, "MLFLOW_TRACKING_USERNAME": "pipeline",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }.items():  # fmt: skip
            environment.setenv(name, value)
        with psycopg.connect(postgres, autocommit=True) as connection:
            for database in ("mlflow", "mlflow_auth"):
                connection.execute(f"CREATE DATABASE {database}")
        databases = [
            postgres.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{d}?")
            for d in ("mlflow", "mlflow_auth")
        ]
        settings = (Path(PROJECT) / "docker" / "mlflow" / "auth.ini").read_text().splitlines()
        lines = [line if not line.startswith("database_uri") else f"database_uri = {databases[1]}" for line in settings]
        (home / "auth.ini").write_text("\n".join(lines))
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--app-name", "basic-auth", "--backend-store-uri", databases[0], "--default-artifact-root", f"s3://{BUCKET}/runs",
            "--no-serve-artifacts", "--allowed-hosts", f"127.0.0.1:{front}",
        ]  # fmt: skip
        environ = os.environ | {
            "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the tests", "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip
        server = Mlflow(command, environ, home, port, f"http://127.0.0.1:{front}{PREFIX}")
        stack.callback(server.kill)
        nginx = subprocess.Popen(["nginx", "-e", "stderr", "-c", str(configured(home, front, port))])
        stack.callback(lambda: (nginx.terminate(), nginx.wait(20)))
        server.start()
        user = {"username": "replica", "password": PASSWORD}
        made = httpx.post(
            f"{server.address}/api/2.0/mlflow/users/create", json=user, auth=("pipeline", PASSWORD), trust_env=False
        )
        assert made.status_code == 200, made.text
        yield server


def configured(home: Path, front: int, port: int) -> Path:
    """nginx in front of MLflow under a path prefix: the Host of the request, port included, is handed on."""
    path = home / "nginx.conf"
    path.write_text(
        f"""daemon off; pid {home}/nginx.pid; error_log stderr crit; events {{}}
http {{ access_log off; client_max_body_size 1g; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{ listen 127.0.0.1:{front};
    location {PREFIX}/ {{ proxy_pass http://127.0.0.1:{port}/; proxy_set_header Host $http_host; proxy_read_timeout 120s; }} }} }}
"""
    )
    return path


@dataclass
class Served:
    """A shop with three versions that passed their gates; the first is live on two replicas."""

    shop: Shop
    versions: list[str]
    running: list[Running]
    environ: dict[str, str]

    def live(self) -> set[str]:
        return {httpx.get(f"{r.url}/v1/version", trust_env=False).json()["live"]["version"] for r in self.running}

    def promote(self, version: str) -> subprocess.Popen:
        vitrine = [sys.executable, "-m", "tasks.cli", "release", "promote", version, "--bake", "1"]
        return subprocess.Popen(vitrine, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def served(mlflow: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("shop")
    shop = Shop(home, Registry(mlflow.address, home / "cache"))
    versions = [shop.version(seed=seed) for seed in range(3)]
    shop.point(live=versions[0], blue=versions[0])
    with replicas(mlflow.address, home, 2, poll_s=5.0) as running:  # its authentication costs 0.13 s of processor a request
        settings = Settings(home=home, mlflow_uri=mlflow.address, serving_urls=tuple(r.url for r in running), admin_token=TOKEN)
        until(lambda: all(answers(f"{r.url}/readyz") for r in running), limit_s=240)
        yield Served(shop, versions, running, os.environ | process_environment(settings))


def test_artifacts_lie_in_the_bucket_and_replicas_read_them_there(served: Served, mlflow: Mlflow) -> None:
    assert served.live() == {served.versions[0]}
    run = served.shop.registry.version(INDEX_MODEL, served.versions[0]).run_id
    assert served.shop.registry.client.get_run(run).info.artifact_uri.startswith(f"s3://{BUCKET}/runs/")
    s3 = boto3.client("s3")
    held = [o["Key"] for o in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("/index/manifest.json") for key in held)
    assert not list(mlflow.home.rglob("manifest.json"))


def test_a_host_that_is_not_named_is_refused(mlflow: Mlflow) -> None:
    """MLflow's own guard sees the Host that the client sent, with its port."""
    refused = httpx.get(f"{mlflow.address}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"}, trust_env=False)
    assert refused.status_code in (400, 403)


def test_mlflow_killed_in_the_middle_of_a_promotion_costs_no_answer(served: Served, mlflow: Mlflow) -> None:
    old, new = served.versions[0], served.versions[1]
    photo = (served.shop.home / "shop" / "photos" / "7-2.jpg").read_bytes()

    def ask() -> None:
        for replica in served.running:
            answer = httpx.post(f"{replica.url}/v1/search", files={"image": photo}, data={"k": "3"}, trust_env=False)
            assert answer.json()["results"][0]["product_id"] == "p007", answer.text

    promotion = served.promote(new)
    until(lambda: served.shop.registry.aliases(INDEX_MODEL).get("green") == new, "the new version is in its slot", limit_s=120)
    mlflow.kill()
    for _ in range(10):
        ask()
    assert served.live() <= {old, new}
    mlflow.start()
    said = promotion.communicate(timeout=300)[0]
    assert "Traceback" not in said, said
    ask()
    if promotion.returncode != 0:
        again = served.promote(new)
        said = again.communicate(timeout=300)[0]
        assert again.returncode == 0, said
    assert served.shop.registry.aliases(INDEX_MODEL)["live"] == new
    until(lambda: served.live() == {new}, "both replicas follow", limit_s=240)


def test_a_replica_starts_from_its_own_copy_while_mlflow_is_away(served: Served, mlflow: Mlflow, tmp_path: Path) -> None:
    cache = served.shop.home / "replica-0"
    shutil.copytree(cache, tmp_path / "cache")
    before = served.shop.registry.aliases(INDEX_MODEL)["live"]
    mlflow.kill()
    slots: Slots = Slots(MlflowSource(mlflow.address, tmp_path / "cache"))
    slots.refresh()
    mlflow.start()
    assert slots.live is not None, slots.describe()
    assert slots.live.version == before
