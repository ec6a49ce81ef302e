"""What answers, of docker/compose.yaml, in containers: PostgreSQL, Redis, object store, MLflow, two replicas, nginx; make stack-test.

A version is registered from here, through MLflow's own authentication; then a replica is killed, everything restarted, and everything
deleted and restored from a backup as docs/operate/backup.md says.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tasks.registry import Registry
from tests.docker.compose_stack import ComposeStack, until
from tests.registered import Shop

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

SERVICES = ("postgres", "redis", "redis-cache", "s3", "s3-buckets", "mlflow", "serving-1", "serving-2", "nginx")


@dataclass
class Searching:
    """The stack, the version that is live in it, and a photo with the products that answer it."""

    stack: ComposeStack
    version: str
    photo: bytes
    expected: list[str]

    def answers(self) -> list[str]:
        answer = self.stack.search(self.photo)
        assert answer.status_code == 200, answer.text
        return [r["product_id"] for r in answer.json()["results"]]


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searching]:
    home, environment = tmp_path_factory.mktemp("stack"), pytest.MonkeyPatch()
    stack, began = ComposeStack(home), time.monotonic()
    for way in ("DOWNLOAD", "UPLOAD"):  # the object store's address is one of the containers' network
        environment.setenv(f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}", "false")
    environment.setenv("MLFLOW_TRACKING_USERNAME", "pipeline")
    environment.setenv("MLFLOW_TRACKING_PASSWORD", stack.secrets["MLFLOW_ADMIN_PASSWORD"])
    try:
        stack.up(*SERVICES)
        wait_for_mlflow(stack)
        print(f"\nup from nothing in {time.monotonic() - began:.0f} s")
        shop = Shop(home, Registry(stack.urls["MLFLOW"], home / "cache"))
        version = shop.version()
        shop.point(live=version, blue=version)
        until(lambda: stack.live() == version, "the version is live", limit_s=600)
        photo = next((home / "shop" / "images").glob("*.jpg")).read_bytes()
        searching = Searching(stack, version, photo, [])
        searching.expected = searching.answers()
        assert len(searching.expected) >= 10
        yield searching
    finally:
        environment.undo()
        stack.compose("down", "-v")


def wait_for_mlflow(stack: ComposeStack) -> None:
    def healthy() -> bool:
        try:
            return httpx.get(f"{stack.urls['MLFLOW']}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    until(healthy, "MLflow answers", limit_s=900)


def test_what_is_for_the_pipeline_is_not_let_through(searching: Searching) -> None:
    for path in ("metrics", "v1/samples", "v1/follow", "shard/state"):
        assert httpx.get(f"{searching.stack.urls['SEARCH']}/{path}", trust_env=False).status_code == 404, path


def test_a_body_that_a_replica_would_refuse_ends_at_the_proxy(searching: Searching) -> None:
    answer = searching.stack.search(b"x" * (15 << 20))
    assert answer.status_code == 413
    assert "nginx" in answer.text


def test_a_killed_replica_costs_no_answer(searching: Searching) -> None:
    searching.stack.compose("kill", "serving-1")
    assert all(searching.answers() == searching.expected for _ in range(40))
    searching.stack.compose("start", "serving-1")


def test_a_killed_registry_costs_no_answer_and_a_replica_starts_without_it(searching: Searching) -> None:
    stack = searching.stack
    stack.compose("stop", "-t", "0", "mlflow")  # not "kill": podman would start it again
    stack.compose("restart", "serving-2")
    stack.compose("kill", "serving-1")
    until(lambda: stack.live() == searching.version, "the restarted replica serves its own copy", limit_s=300)
    assert searching.answers() == searching.expected
    for service in ("mlflow", "serving-1"):
        stack.compose("start", service)
    wait_for_mlflow(stack)


def test_a_restart_of_everything_keeps_its_state(searching: Searching) -> None:
    stack = searching.stack
    stack.compose("down")
    stack.up(*SERVICES)
    until(lambda: stack.live() == searching.version, "the same version is live", limit_s=900)
    assert searching.answers() == searching.expected
    wait_for_mlflow(stack)


def test_everything_is_deleted_and_restored_from_a_backup(searching: Searching) -> None:
    stack = searching.stack
    stack.delete_and_restore(stack.backup("mlflow"), *SERVICES)
    wait_for_mlflow(stack)
    until(lambda: stack.live() == searching.version, "the version of the backup is live", limit_s=600)
    assert searching.answers() == searching.expected
