"""A catalogue without labelled photos goes from its folder to a live index version, and then gets its first photos."""

from pathlib import Path

import pytest

from serving.contract.provenance import QuerySet
from tasks.board.timeline import LoadedVersion, timeline
from tasks.pipelines import common
from tasks.registry import INDEX_MODEL
from tasks.watch.cost import Prices
from tasks.watch.live_metrics import measure_live
from tests.catalog.changes.refreshed import own_mlflow
from tests.catalogs import read_table, small_catalog, write_table
from tests.graphs import open_all_here
from tests.pipelines.steps import go_live, make_champion, make_version, without_spark

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PRODUCTS = 24


def test_an_unlabelled_folder_becomes_a_live_version_that_says_so_and_photos_replace_views_as_they_come(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = small_catalog(tmp_path / "shop", PRODUCTS)
    labelled = [p for p in read_table(shop / "photos.csv") if p["split"] == "val"]
    (shop / "photos.csv").unlink()
    for name, value in {
        "HOME": str(tmp_path / "home"), "CATALOG": str(shop), "MLFLOW_URI": own_mlflow(tmp_path, mlflow_tables), "SERVING_URLS": "",
        "ENCODER_PRESET": "tiny", "P99_MS": "60000",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"VITRINE_{name}", value)
    without_spark(monkeypatch)
    open_all_here(monkeypatch)

    decision = make_champion("first")
    assert f"on {PRODUCTS} synthetic queries" in decision.summary
    registry = common.registry()
    judged = {g.name: g for g in decision.failed}
    assert not {n for n in judged if n.startswith("beats_untrained")}, "synthetic queries cannot tell, so it passes and says so"

    made = make_version("first-index")
    assert made.passed, made.summary
    manifest = registry.index_manifest(made.version)
    assert manifest.queries == QuerySet(kind="synthetic", photos=0, synthetic=PRODUCTS)
    reasons = {g.name: g.reason for g in manifest.gates}
    assert reasons["photo_recall"].startswith(f"Recall@1 on {PRODUCTS} synthetic queries: ")
    assert f"on {PRODUCTS} synthetic queries" in reasons["exact_recall"]
    assert "a phone's photo takes longer" in reasons["p99_ms"]
    shown = registry.version(INDEX_MODEL, made.version)
    assert f"Recall@10 of synthetic queries ({PRODUCTS})" in shown.description
    (entry,) = timeline([LoadedVersion(shown, manifest)], registry)
    assert entry.recall_of == f"Recall@1 on {PRODUCTS} synthetic queries"

    go_live(made.version, "first-live")
    assert registry.require_alias(INDEX_MODEL, "live").version == made.version
    seen = measure_live(registry, [], common.settings().store_uri, Prices(0.0, 0.0), 0.0)
    assert seen.figures.recall == 1.0
    assert any(note.startswith("recall is measured on synthetic queries") for note in seen.figures.notes)

    write_table(shop / "photos.csv", labelled[:5])
    second = make_version("second-index")
    manifest = registry.index_manifest(second.version)
    assert manifest.queries == QuerySet(kind="mixed", photos=5, synthetic=PRODUCTS - 5)
    reason = next(g.reason for g in manifest.gates if g.name == "photo_recall")
    assert f"on 5 held-out photos and {PRODUCTS - 5} synthetic queries: " in reason
    assert f"difference on the 5 photos and {PRODUCTS - 5} synthetic queries measured on both" in reason
