"""The images of docker/ as the stack of docker/compose.yaml, from nothing to an answered photo, with parts killed: make stack-test.

Needs the images (`make images`), podman or Docker with compose, and ports 8000, 5000, 8080 (or SEARCH_PORT, MLFLOW_PORT, AIRFLOW_PORT).
Everything lies in volumes of its own project, which are deleted at the end.
"""

import contextlib
import io
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.catalog.sample.catalog import SampleConfig, draw_sample
from tasks.demo.airflow import Airflow
from tasks.settings import PROJECT
from tests import running

pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200)]
DOCKER = PROJECT / "docker"
PRODUCTS = 120
ENDED = ("success", "failed")
PIPELINE = {
    "VITRINE_ENCODER_PRESET": "tiny", "VITRINE_SHARDS": "2", "VITRINE_P99_MS": "60000", "VITRINE_BAKE_S": "2",
    "VITRINE_RECALL_TARGET": "0.5", "VITRINE_MIN_STUDENT_RECALL": "0.1", "VITRINE_MIN_STUDENT_SPEEDUP": "0.1",
    "VITRINE_MIN_STUDENT_COMPRESSION": "0.1", "VITRINE_MIN_INT8_RECALL": "0.1", "VITRINE_APPROVE_HOURS": "0",
}  # fmt: skip
"""The pipeline is tried, not the encoder: its gates let a tiny one through."""


def until(condition: Any, what: str, limit_s: float = 1800) -> None:
    running.until(condition, what, limit_s=limit_s)


class ComposeStack:
    """`docker compose` over docker/compose.yaml with the variables of this run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([str(DOCKER / "make-secrets"), str(folder / "env")], check=True)
        env = dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())
        self.secrets = env
        stand_ins = (DOCKER / "standins" / "images.env").read_text().split() if os.environ.get("STANDINS") else []
        self.environment = os.environ | dict(s.split("=", 1) for s in stand_ins) | {"COMPOSE_PROJECT_NAME": "vitrine-test"}
        self.container = shlex.split(os.environ.get("CONTAINER") or "docker")
        self.profile = os.environ.get("PROFILE") or "minimal"
        ports = {n: os.environ.get(f"{n}_PORT", p) for n, p in (("SEARCH", "8000"), ("MLFLOW", "5000"), ("AIRFLOW", "8080"))}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        (folder / "settings.env").write_text("".join(f"{k}={v}\n" for k, v in PIPELINE.items()))
        self.environment["SETTINGS"] = str(folder / "settings.env")
        self.airflow = Airflow(self.urls["AIRFLOW"], "admin", env["AIRFLOW_ADMIN_PASSWORD"])

    def compose(self, *words: str, **options: Any) -> str:
        files = ["compose", "--env-file", str(self.folder / "env"), "-f", str(DOCKER / "compose.yaml"), "-p", "vitrine-test"]
        command = [*self.container, *files, "--profile", self.profile, *words]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, **options)
        assert ran.returncode == 0, f"{words}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout

    def fill_the_shop(self) -> None:
        """The drawn sample: its pictures into the bucket, its tables into PostgreSQL, from inside of a worker."""
        sample = self.folder / "shop"
        draw_sample(SampleConfig(PRODUCTS, 3), sample)
        archive = io.BytesIO()
        import tarfile

        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(sample, "shop")
        load = (Path(__file__).parent / "load_shop.py").read_text()
        name = self.compose("ps", "-q", "worker-1").split()[0]
        copy = [*self.container, "exec", "-i", name, "tar", "-x", "-C", "/tmp"]
        subprocess.run(copy, input=archive.getvalue(), check=True)
        subprocess.run([*self.container, "exec", name, "python", "-c", load], check=True)

    def run(self, dag: str) -> str:
        run_id = self.airflow.trigger(dag)
        until(lambda: self.quietly(lambda: self.airflow.run(dag, run_id)["state"]) in ENDED, f"{dag} ends")
        state = str(self.airflow.run(dag, run_id)["state"])
        print(f"{dag}: {state}; " + ", ".join(f"{t.task} {t.state}" for t in self.airflow.tasks(dag, run_id)))
        return state

    def quietly(self, ask: Any) -> Any:
        """None while the API server is away."""
        with contextlib.suppress(httpx.HTTPError):
            return ask()
        return None

    def search(self) -> httpx.Response:
        photo = next((self.folder / "shop" / "photos").glob("*.jpg")).read_bytes()
        return httpx.post(f"{self.urls['SEARCH']}/v1/search", files={"image": photo}, timeout=10, trust_env=False)

    def live(self) -> str:
        """The version that the search page's address serves; "" for none."""
        with contextlib.suppress(httpx.HTTPError, KeyError, TypeError):
            return str(httpx.get(f"{self.urls['SEARCH']}/v1/version", timeout=5, trust_env=False).json()["live"]["version"])
        return ""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    stack = ComposeStack(tmp_path_factory.mktemp("stack"))
    began = time.monotonic()
    try:
        stack.compose("up", "-d")
        wanted = {"train_encoder", "rebuild_index", "refresh_index", "promote_index"}
        until(lambda: wanted <= (stack.quietly(stack.airflow.dags) or set()), "the DAGs are parsed")
        print(f"\nup from nothing in {time.monotonic() - began:.0f} s")
        stack.fill_the_shop()
        yield stack
    finally:
        stack.compose("down", "-v")


def test_a_night_goes_live_and_a_photo_is_answered_through_the_load_balancer(stack: ComposeStack) -> None:
    assert stack.run("train_encoder") == "success"
    until(lambda: stack.live() != "", "the first version is live")
    answer = stack.search()
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 20
    assert httpx.get(f"{stack.urls['SEARCH']}/metrics", trust_env=False).status_code == 404


def test_an_hour_goes_live(stack: ComposeStack) -> None:
    before = stack.live()
    stack.compose("exec", "-T", "worker-1", "vitrine", "changes", "send", "p00001")
    assert stack.run("refresh_index") == "success"
    until(lambda: stack.live() not in ("", before), "the hourly version is live")


def test_a_killed_replica_costs_no_answer(stack: ComposeStack) -> None:
    stack.compose("kill", "serving-1")
    statuses = [stack.search().status_code for _ in range(50)]
    assert set(statuses) == {200}
    stack.compose("start", "serving-1")


def test_a_killed_scheduler_and_worker_finish_what_they_began(stack: ComposeStack) -> None:
    before = stack.live()
    stack.compose("exec", "-T", "worker-1", "vitrine", "changes", "send", "p00002")
    run_id = stack.airflow.trigger("refresh_index")
    until(lambda: any(t.state == "running" for t in stack.airflow.tasks("refresh_index", run_id)), "a task runs")
    stack.compose("kill", "airflow-scheduler")
    stack.compose("kill", "worker-1")
    stack.compose("start", "airflow-scheduler", "worker-1")
    until(lambda: stack.quietly(lambda: stack.airflow.run("refresh_index", run_id)["state"]) in ENDED, "the run ends")
    assert stack.airflow.run("refresh_index", run_id)["state"] == "success"
    until(lambda: stack.live() not in ("", before), "its version is live")


def test_a_restart_of_everything_keeps_its_state(stack: ComposeStack) -> None:
    before, answer = stack.live(), stack.search().json()["results"]
    stack.compose("down")
    stack.compose("up", "-d")
    until(lambda: stack.live() == before, "the same version is live")
    assert [r["product_id"] for r in stack.search().json()["results"]] == [r["product_id"] for r in answer]
    stack.compose("exec", "-T", "worker-1", "vitrine", "changes", "send", "p00003")
    until(lambda: stack.quietly(stack.airflow.dags), "Airflow answers")
    assert stack.run("refresh_index") == "success"
    until(lambda: stack.live() not in ("", before), "the next hour is live")
