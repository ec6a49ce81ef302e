"""The hourly path with several pictures of a product: what a change costs, what can be found by it, and both reconciliations."""

from pathlib import Path

import numpy as np
import pytest

from tasks.embed.quarantine import read_quarantine
from tasks.index.verify_version import check_index
from tasks.pipelines import drain_changes, refresh_index
from tasks.pipelines.index_records import EmbeddedChanges
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.catalogs import picture

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_pictures_added_reordered_replaced_and_lost(mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    names = [f"images/further-{n}.jpg" for n in range(4)]
    for n, name in enumerate(names):
        picture(tmp_path / "shop" / name, 200 + n)

    def refresh(run_key: str, images: list[str], image: str = "images/3.jpg") -> tuple[EmbeddedChanges, str]:
        live.send(live.upsert(3, len(run_key), image=image, images=images))
        plan = drain_changes.drain(run_key)
        embedded = refresh_index.embed(plan)
        registered = refresh_index.register(plan, embedded)
        assert registered.passed, registered.summary
        refresh_index.acknowledge(plan, registered, embedded)
        refresh_index.publish(registered)
        return embedded, registered.version

    def counts(version: str) -> tuple[int, ...]:
        manifest = live.registry.index_manifest(version)
        assert [(c.name, c.detail) for c in check_index(manifest, live.registry.file) if not c.passed] == []
        found = manifest.counts
        return found.catalogue, found.embedded, found.quarantined, found.servable, found.pictures or 0, found.quarantined_pictures

    embedded, version = refresh("r", ["images/lost.jpg"])
    assert counts(version) == (60, 60, 0, 60, 60, 1), "counted, although no product has two pictures that can be used"

    embedded, version = refresh("rr", [names[0], names[1], "images/lost.jpg"])
    assert embedded.result is not None
    assert (embedded.result.embedded_now, embedded.result.pictures, embedded.result.quarantined_pictures) == (2, 3, 1)
    assert counts(version) == (60, 60, 0, 60, 62, 1)
    (entry,) = read_quarantine(str(tmp_path / "data"), ["rr"], pictures=True)
    assert (entry.product_id, entry.image_uri, entry.position, entry.found) == ("p003", "images/lost.jpg", 3, True)

    embedded, version = refresh("rrr", [names[1], names[0]])
    assert embedded.result is not None
    assert embedded.result.embedded_now == 0, "a reordering costs nothing"
    assert counts(version) == (60, 60, 0, 60, 62, 0)

    embedded, version = refresh("rrrr", [names[1], names[2], names[3]])
    assert embedded.result is not None
    assert embedded.result.embedded_now == 2, "what is replaced or added, and nothing else"
    assert counts(version) == (60, 60, 0, 60, 63, 0)
    searcher = live.searcher(version)
    rows = np.flatnonzero(searcher.live())
    ids = [row["product_id"] for row in searcher.features.take(rows, ["product_id"])]
    assert sorted(ids) == sorted(set(ids)), "one row of features a product"

    embedded, version = refresh("rrrrr", ["images/lost.jpg"], "images/lost-too.jpg")
    assert counts(version)[:4] == (60, 59, 1, 59)
    assert live.registry.version(INDEX_MODEL, version).tags["verdict"] == "passed"
