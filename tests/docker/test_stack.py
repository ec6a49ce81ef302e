"""The images of docker/ as the stack of docker/compose.yaml: from nothing to a night, an hour, and killed parts; make stack-test.

Needs the images (`make images`), podman or Docker with compose, and ports 8000, 5000, 8080 (or SEARCH_PORT, MLFLOW_PORT, AIRFLOW_PORT).
Everything lies in volumes of its own project, which are deleted at the end.
"""

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.catalog.sample.catalog import SampleConfig, draw_sample
from tasks.demo.airflow import Airflow, TaskState
from tasks.errors import VitrineError
from tests.docker.compose_stack import ComposeStack, until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200)]
PRODUCTS = 120
ENDED = ("success", "failed")
PIPELINE = {
    "VITRINE_ENCODER_PRESET": "tiny", "VITRINE_SHARDS": "2", "VITRINE_P99_MS": "60000", "VITRINE_BAKE_S": "2",
    "VITRINE_RECALL_TARGET": "0.5", "VITRINE_MIN_STUDENT_RECALL": "0.1", "VITRINE_MIN_STUDENT_SPEEDUP": "0.1",
    "VITRINE_MIN_STUDENT_COMPRESSION": "0.1", "VITRINE_MIN_INT8_RECALL": "0.1", "VITRINE_APPROVE_HOURS": "0",
}  # fmt: skip
"""The pipeline is tried, not the encoder: training is short, and there are few photos to measure on."""


class PipelineStack(ComposeStack):
    """The whole of it, with the drawn sample as its shop."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PIPELINE)
        self.airflow = Airflow(self.urls["AIRFLOW"], "admin", self.secrets["AIRFLOW_ADMIN_PASSWORD"])

    def fill_the_shop(self) -> None:
        """The drawn sample: its pictures into the bucket, its tables into PostgreSQL, from inside of a worker."""
        draw_sample(SampleConfig(PRODUCTS, 3), self.folder / "shop")
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(self.folder / "shop", "shop")
        self.compose("exec", "-T", "worker-1", "tar", "-x", "-C", "/tmp", given=archive.getvalue())
        load = (Path(__file__).parent / "load_shop.py").read_text()
        self.compose("exec", "-T", "worker-1", "python", "-c", load)

    def spark_jobs(self) -> list[dict[str, Any]]:
        """The applications that Spark's master has seen the end of."""
        ask = "import urllib.request as r; print(r.urlopen('http://spark:8080/json/').read().decode())"
        return json.loads(self.compose("exec", "-T", "spark", "python", "-c", ask))["completedapps"]

    def watched(self) -> dict[str, str]:
        """What Prometheus says of each of its targets."""
        answer = httpx.get(f"{self.urls['PROMETHEUS']}/api/v1/query", params={"query": "up"}, timeout=10, trust_env=False)
        return {one["metric"]["instance"]: one["value"][1] for one in answer.json()["data"]["result"]}

    def photo(self) -> bytes:
        return next((self.folder / "shop" / "photos").glob("*.jpg")).read_bytes()

    def products(self) -> list[str]:
        """What the load balancer answers to the photo."""
        answer = self.search(self.photo())
        assert answer.status_code == 200, answer.text
        return [r["product_id"] for r in answer.json()["results"]]

    def change(self, product_id: str) -> None:
        self.compose("exec", "-T", "worker-1", "vitrine", "changes", "send", product_id)

    def adopt(self, encoder: str) -> None:
        """As docs/operate/install.md says."""
        self.compose("exec", "-T", "worker-1", "vitrine", "encoder", "adopt", encoder)

    def finished(self, dag: str, run_id: str) -> str:
        """The state that a run ends with."""
        until(lambda: self.quietly(lambda: self.airflow.run(dag, run_id)["state"]) in ENDED, f"{dag} ends")
        state = str(self.airflow.run(dag, run_id)["state"])
        print(f"{dag}: {state}; " + ", ".join(f"{t.task} {t.state}" for t in self.tasks(dag, run_id)))
        return state

    def tasks(self, dag: str, run_id: str) -> list[TaskState]:
        return self.quietly(lambda: self.airflow.tasks(dag, run_id)) or []

    def promotes(self) -> bool:
        return any(run["state"] not in ENDED for run in self.airflow.runs("promote_index"))

    def garbage(self, verb: str) -> None:
        """Pauses or unpauses collect_garbage."""
        self.compose("exec", "-T", "airflow-scheduler", "airflow", "dags", verb, "collect_garbage")

    def run(self, dag: str) -> str:
        return self.finished(dag, self.airflow.trigger(dag))

    def quietly(self, ask: Any) -> Any:
        """None while what is asked is away."""
        with contextlib.suppress(httpx.HTTPError, VitrineError):
            return ask()
        return None


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineStack]:
    stack = PipelineStack(tmp_path_factory.mktemp("stack"))
    began = time.monotonic()
    try:
        stack.up()
        wanted = {"train_encoder", "rebuild_index", "refresh_index", "promote_index"}
        until(lambda: wanted <= (stack.quietly(stack.airflow.dags) or set()), "the DAGs are parsed")
        print(f"\nup from nothing in {time.monotonic() - began:.0f} s")
        stack.fill_the_shop()
        yield stack
    finally:
        stack.compose("down", "-v")


def test_a_night_goes_live_and_a_photo_is_answered_through_the_load_balancer(stack: PipelineStack) -> None:
    assert stack.run("train_encoder") == "success"  # six steps from random weights: its gates let no encoder through
    stack.adopt("efficientnet_lite0")
    assert stack.run("rebuild_index") == "success"  # watch_champion would start it within a quarter of an hour
    until(lambda: stack.live() != "", "the first version is live")
    assert len(stack.products()) == 20


@pytest.mark.skipif(os.environ.get("PROFILE") != "full", reason="Spark and Prometheus are in the profile full alone")
def test_spark_embedded_the_pictures_and_prometheus_watches_the_replicas(stack: PipelineStack) -> None:
    jobs = stack.spark_jobs()
    assert jobs
    assert {job["state"] for job in jobs} == {"FINISHED"}
    until(lambda: stack.quietly(stack.watched) == {"serving-1:8000": "1", "serving-2:8000": "1"}, "both replicas are watched")


def test_an_hour_goes_live(stack: PipelineStack) -> None:
    before = stack.live()
    stack.change("p00001")
    assert stack.run("refresh_index") == "success"
    until(lambda: stack.live() not in ("", before), "the hourly version is live")


def test_a_killed_scheduler_and_worker_finish_what_they_began(stack: PipelineStack) -> None:
    before = stack.live()
    stack.change("p00002")
    run_id = stack.airflow.trigger("refresh_index")
    until(lambda: any(t.state == "running" for t in stack.tasks("refresh_index", run_id)), "a task runs")
    for service in ("airflow-scheduler", "worker-1"):
        stack.compose("kill", service)
    for service in ("airflow-scheduler", "worker-1"):
        stack.compose("start", service)
    assert stack.finished("refresh_index", run_id) == "success"
    until(lambda: stack.live() not in ("", before), "its version is live")


def test_a_restart_of_everything_keeps_its_state(stack: PipelineStack) -> None:
    before = stack.live()
    stack.compose("down")
    stack.up()
    until(lambda: stack.live() == before, "the same version is live")
    until(lambda: stack.quietly(stack.airflow.dags), "Airflow answers")
    stack.change("p00003")
    assert stack.run("refresh_index") == "success"
    until(lambda: stack.live() not in ("", before), "the next hour is live")


def test_everything_is_deleted_and_restored_and_the_next_hour_goes_on(stack: PipelineStack) -> None:
    # A bake that goes on in the restored stack finds replicas that still load, and takes its version back.
    until(lambda: stack.quietly(stack.promotes) is False, "the hour's promotion has ended")
    before, products = stack.live(), stack.products()
    stack.garbage("pause")
    stack.delete_and_restore(stack.backup("mlflow", "vitrine", "pictures"))
    until(lambda: stack.live() == before, "the version of the backup is live")
    assert stack.products() == products
    until(lambda: stack.quietly(stack.airflow.dags), "Airflow answers")
    stack.garbage("unpause")
    stack.change("p00004")
    assert stack.run("refresh_index") == "success"
    until(lambda: stack.live() not in ("", before), "the next hour is live")
