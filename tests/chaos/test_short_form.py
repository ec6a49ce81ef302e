"""The short form of `make chaos`: hours whose object store errs, tried again as Airflow tries them; nothing is lost or done twice.

Killed steps are in tests/catalog/changes/test_kills.py and tests/release/promotion/test_killed_promotions.py.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pyarrow.fs as pafs
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
    """The store of the settings, s3://shop/store, by way of a relay; its client waits for nothing before it asks again."""
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    monkeypatch.setattr(storage, "_object_store", cache(lambda _, **options: pafs.S3FileSystem(retry_strategy=once, **options)))
    monkeypatch.setattr(storage, "PAUSES_S", (0.05, 0.05))
    with s3_server() as endpoint:
        relay = Relay(int(endpoint.rpartition(":")[2]))
        aws = {"ENDPOINT_URL": f"http://127.0.0.1:{relay.port}", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
        for name, value in aws.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("VITRINE_STORE", "s3://shop/store")
        yield relay
        relay.cut()


def attempts(refresh: Callable[[], RegisteredVersion]) -> tuple[RegisteredVersion, int]:
    """The version, and after how many attempts; what Airflow does not try again is raised."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return refresh(), number
        except (VitrineError, ContractError) as error:
            if not isinstance(error, ServiceAway) or number == ATTEMPTS:
                raise
        except Exception:
            if number == ATTEMPTS:
                raise
    raise AssertionError("no attempt")


def test_hours_whose_store_errs_lose_nothing_and_put_no_good_picture_into_quarantine(
    relay: Relay, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    live.registry.client.delete_registered_model_alias(INDEX_MODEL, "live")  # its run keys are paths, which S3 takes for no key
    for hour, kinds in enumerate((("503",), ("reset",), ("truncated",), ("503", "reset", "truncated")), 1):
        names = [f"s3://shop/pictures/{hour}-{n}.jpg" for n in range(3)]
        for n, name in enumerate(names):
            storage.put_file(picture(tmp_path / f"{hour}-{n}.jpg", 500 + 10 * hour + n), name)
        new, gone = f"p{100 + hour:03d}", f"p{10 + hour:03d}"
        live.send(
            *(live.upsert(number, hour, image=name) for number, name in zip((hour, hour + 20, 100 + hour), names, strict=True)),
            live.delete(10 + hour, hour),
        )
        before = len(live.registry.versions(INDEX_MODEL))
        relay.faults, relay.share = kinds, 0.1
        made, _ = attempts(lambda hour=hour: live.refresh(f"hour-{hour}"))  # type: ignore[misc]
        relay.share = 0.0
        found = live.found(made.version)
        assert made.passed, made.summary
        assert len(found) == 60, "one came, one went"
        assert [found[p]["image_uri"] for p in (f"p{hour:03d}", f"p{hour + 20:03d}", new)] == names
        assert gone not in found
        assert live.registry.index_manifest(made.version).counts.quarantined == 0
        assert live.count_waiting() == 0
        assert len(live.registry.versions(INDEX_MODEL)) == before + 1, "registered once"
    assert relay.met.total() > 10, "the store erred"
