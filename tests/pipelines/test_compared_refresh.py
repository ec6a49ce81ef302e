"""A catalogue without an outbox is refreshed by comparing it: what changed goes into the next version, once, also after a kill."""

from pathlib import Path

import pytest

from tasks.pipelines import drain_changes, refresh_index
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.catalogs import picture, read_table, write_table

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_compared_catalogue_is_refreshed_until_nothing_differs(
    tmp_path: Path, mlflow_tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch, products=24)
    live.environment["VITRINE_CHANGES"] = "compare:"
    assert not live.refresh("nothing").due
    table = live.home / "shop" / "products.csv"
    rows = read_table(table)
    gone, changed = rows.pop(3)["product_id"], rows[0]["product_id"]
    rows[0]["title"] = "another title"
    rows.append(rows[1] | {"product_id": "new", "title": "a new one", "image": "images/new.jpg"})
    picture(live.home / "shop" / "images/new.jpg", 999)
    write_table(table, rows)
    plan = drain_changes.drain("one")
    assert (plan.upserts, plan.deletes) == (2, 1)
    registered = refresh_index.register(plan, embedded := refresh_index.embed(plan))
    assert live.count_waiting() == 3, "nothing leaves the outbox before it is acknowledged"
    again = drain_changes.drain("one")  # killed here, and run again
    assert again == plan
    refresh_index.acknowledge(plan, registered, embedded)
    refresh_index.publish(registered)
    found = live.found(registered.version)
    assert (found[changed]["title"], "new" in found, gone in found) == ("another title", True, False)
    assert not live.refresh("two").due
    assert live.count_waiting() == 0
