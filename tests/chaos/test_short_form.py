"""The short form of `make chaos`: an hour whose object store errs, tried again as Airflow does; nothing is lost or done twice.

Killed steps are in tests/catalog/changes/test_kills.py and tests/release/promotion/test_killed_promotions.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.contract.files import ContractError
from tasks import storage
from tasks.errors import ServiceAway, VitrineError
from tasks.pipelines.index_records import RegisteredVersion
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.catalogs import picture
from tests.relay import Relay
from tests.servers import s3_server

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ATTEMPTS = 4
"""Of `embed` and `acknowledge`, as dags/refresh_index.py says."""


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The store of the settings, s3://shop/store, by way of a relay."""
    monkeypatch.setattr(storage, "PAUSES_S", (0.1, 0.1, 0.1))
    with s3_server() as endpoint:
        relay = Relay(int(endpoint.rpartition(":")[2]))
        aws = {"ENDPOINT_URL": f"http://127.0.0.1:{relay.port}", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
        for name, value in aws.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("VITRINE_STORE", "s3://shop/store")
        yield relay
        relay.cut()


def attempts(refresh: Callable[[], RegisteredVersion]) -> RegisteredVersion:
    """The version that one of ATTEMPTS made; what Airflow does not try again is raised."""
    for _ in range(ATTEMPTS - 1):
        try:
            return refresh()
        except Exception as error:
            if isinstance(error, VitrineError | ContractError) and not isinstance(error, ServiceAway):
                raise
    return refresh()


def test_an_hour_whose_store_errs_loses_nothing_and_puts_no_good_picture_into_quarantine(
    relay: Relay, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    live.environment["VITRINE_CHANGES"] = f"outbox:sqlite:///{tmp_path / 'changes.db'}"
    live.registry.client.delete_registered_model_alias(INDEX_MODEL, "live")  # its run keys are paths, which S3 takes for no key
    names = [f"s3://shop/pictures/{n}.jpg" for n in range(3)]
    for n, name in enumerate(names):
        storage.put_file(picture(tmp_path / f"{n}.jpg", 500 + n), name)
    live.send(*(live.upsert(number, 1, image=name) for number, name in zip((1, 21, 101), names, strict=True)), live.delete(11, 1))
    before = len(live.registry.versions(INDEX_MODEL))
    relay.faults, relay.share = ("503", "reset", "truncated"), 0.1
    made = attempts(lambda: live.refresh("hour"))
    relay.share = 0.0
    found = live.found(made.version)
    assert made.passed, made.summary
    assert len(found) == 60, "one came, one went"
    assert [found[p]["image_uri"] for p in ("p001", "p021", "p101")] == names
    assert "p011" not in found
    assert live.registry.index_manifest(made.version).counts.quarantined == 0
    assert live.count_waiting() == 0
    assert len(live.registry.versions(INDEX_MODEL)) == before + 1, "registered once"
    assert relay.met.total() >= 3, "the store erred"
