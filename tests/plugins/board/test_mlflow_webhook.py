"""The champion moved by hand in MLflow: its real webhook, the route that checks it, and Airflow's asset event."""

import json
import time
from collections.abc import Iterator

import pytest

from serving.contract.webhook_signature import signature
from tasks.pipelines.watch_champion import moved_champion
from tasks.registry import ENCODER_MODEL
from tasks.registry.webhook import AIRFLOW, register_webhook
from tests.plugins.board.conftest import SECRET, Stack

pytestmark = pytest.mark.slow


@pytest.fixture
def hooked(stack: Stack) -> Iterator[Stack]:
    """MLflow tells Airflow; not any more when the test is over."""
    assert register_webhook(stack.registry, stack.server.url, SECRET)
    assert not register_webhook(stack.registry, stack.server.url, SECRET)
    yield stack
    client = stack.registry.client
    for webhook in client.list_webhooks():
        client.delete_webhook(webhook.webhook_id)


def events(stack: Stack) -> list[dict]:
    """The encoder's asset events, oldest first."""
    with stack.server.client("viewer") as client:
        found = client.get("/api/v2/assets/events", params={"limit": 100}).json()["asset_events"]
    return [e["extra"] for e in sorted(found, key=lambda e: e["id"]) if e["name"] == ENCODER_MODEL]


def wait_for(stack: Stack, count: int) -> list[dict]:
    until = time.monotonic() + 90
    while len(found := events(stack)) < count and time.monotonic() < until:
        time.sleep(0.2)
    return found


def post(stack: Stack, version: str, sent: float, secret: str = SECRET, alias: str = "champion") -> tuple[int, dict]:
    """A message as MLflow sends it, or as somebody forges it."""
    data = {"name": ENCODER_MODEL, "alias": alias, "version": version}
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": data}).encode()
    stamp = str(int(sent))
    headers = {
        "X-MLflow-Delivery-Id": "x", "X-MLflow-Timestamp": stamp, "X-MLflow-Signature": signature(secret, "x", stamp, body),
    }  # fmt: skip
    with stack.server.client() as client:
        answer = client.post("/vitrine-hook/champion", content=body, headers=headers)
    return answer.status_code, answer.json()


def test_a_champion_moved_by_hand_is_one_event_however_often_it_is_told(hooked: Stack) -> None:
    registry = hooked.registry
    before, other = len(events(hooked)), hooked.shop.encoder(seed=1)
    first = registry.aliases(ENCODER_MODEL)["champion"]
    registry.set_alias(ENCODER_MODEL, "champion", other)
    found = wait_for(hooked, before + 1)
    assert (found[-1]["version"], found[-1]["told_by"]) == (other, "MLflow")
    registry.set_alias(ENCODER_MODEL, "champion", other)
    registry.set_alias(ENCODER_MODEL, "challenger", first)
    status, said = post(hooked, other, time.time())
    assert (status, said["announced"], said["why"]) == (200, False, f"version {other} was announced already")
    time.sleep(2)
    assert len(events(hooked)) == before + 1
    registry.set_alias(ENCODER_MODEL, "champion", first)
    assert [e["version"] for e in wait_for(hooked, before + 2)[before:]] == [other, first]


def test_a_kept_message_about_an_older_champion_starts_nothing(stack: Stack) -> None:
    champion = stack.registry.aliases(ENCODER_MODEL)["champion"]
    post(stack, champion, time.time())
    before = len(events(stack))
    other = "1" if champion != "1" else "2"
    status, said = post(stack, other, time.time())
    assert (status, said["announced"], said["version"]) == (200, False, champion)
    assert len(events(stack)) == before


def test_unsigned_forged_and_old_messages_are_refused(stack: Stack) -> None:
    before = len(events(stack))
    with stack.server.client() as client:
        assert client.post("/vitrine-hook/champion", content=b"{}").status_code == 401
        assert client.post("/vitrine-hook/champion", content=b"x" * 70_000).status_code == 413
        assert client.get("/vitrine-hook/champion").status_code == 405
    with stack.server.client("admin") as admin:
        assert admin.post("/vitrine-hook/champion", content=b"{}").status_code == 401
    assert post(stack, "1", time.time(), secret="guessed")[0] == 401
    status, said = post(stack, "1", time.time() - 301)
    assert (status, "more than 300 s" in said["detail"]) == (401, True)
    assert post(stack, "1", time.time(), alias="challenger")[1]["announced"] is False
    assert len(events(stack)) == before


def test_the_poll_finds_a_move_that_nobody_told_of(stack: Stack) -> None:
    champion = stack.registry.aliases(ENCODER_MODEL)["champion"]
    assert moved_champion(lambda: champion, stack.registry, lambda _: None).version == ""
    found = moved_champion(lambda: "", stack.registry, lambda _: None)
    assert found.version == champion
    assert found.links["Model version"].partition("?")[0].endswith(f"/models/product-encoder/versions/{champion}")
    waited: list[float] = []
    told = iter(["0", champion])
    assert moved_champion(lambda: next(told), stack.registry, waited.append).version == ""
    assert len(waited) == 1


def test_an_address_that_mlflow_refuses_is_one_sentence(stack: Stack) -> None:
    from tasks.errors import VitrineError

    with pytest.raises(VitrineError, match="MLFLOW_WEBHOOK_ALLOWED_SCHEMES"):
        register_webhook(stack.registry, "ftp://somewhere", SECRET)
    assert not any(w.name == AIRFLOW.name and w.url.startswith("ftp") for w in stack.registry.client.list_webhooks())
