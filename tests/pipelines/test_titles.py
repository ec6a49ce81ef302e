"""The hourly and the nightly path of products without a picture: found by words, with exact counts, whatever becomes of them."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.versions.text_encoder import TextEncoder
from tasks.catalog.changes.event import Event, upsert
from tasks.catalog.schema import RowLimits
from tasks.errors import VitrineError
from tasks.pipelines import common, preconditions, rebuild_index
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tasks.release.trace import trace_product
from tests.catalog.changes.refreshed import LiveShop, at, own_mlflow
from tests.catalogs import read_table, write_table
from tests.pipelines.steps import make_version, without_spark

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TEXT_ONLY = RowLimits(text_only=True)


def bare(number: int, minute: int, title: str) -> Event:
    return upsert(f"p{number:03d}", at(minute), {"title": title, "image": ""}, TEXT_ONLY)


def test_titles_come_change_get_a_picture_lose_it_and_go(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch, products=20, words=True)
    live.environment["VITRINE_TEXT_ONLY"] = "true"

    def after(run_key: str, *events: Event) -> tuple[tuple[int, ...], dict[str, dict]]:
        """Catalogue, embedded, quarantined, titles; and what can be found."""
        live.send(*events)
        made = live.refresh(run_key)
        assert made.passed, made.summary
        counts = live.registry.index_manifest(made.version).counts
        return (counts.catalogue, counts.embedded, counts.quarantined, counts.titles or 0), live.found(made.version)

    text = TextEncoder.open(EncoderFolder(tmp_path / "tiny/0-16"))
    assert text is not None

    def finds(words: str, photo: bool = False) -> str:
        """The best product by words, or by the same vector as if it were a photo's."""
        version = live.registry.aliases(INDEX_MODEL)["candidate"]
        searcher = live.searcher(version)
        best = searcher.search(text.encode(words)[None], 1, words=not photo).rows[0, 0]
        return str(searcher.features.table["product_id"][int(best)].as_py())

    counts, found = after("r1", bare(30, 1, "red mug"))
    assert counts == (21, 21, 0, 1)
    assert found["p030"]["image_uri"] == ""
    assert finds("red mug") == "p030"
    assert finds("red mug", photo=True) != "p030"
    chain = dict(trace_product(live.registry, "p030", live.registry.aliases(INDEX_MODEL)["candidate"]))
    assert chain["picture"] == "none: it is found by its title"
    assert chain["title"].startswith("red mug, ")
    assert (len(chain["title sha256"]), "image sha256" in chain) == (64, False)

    counts, changed = after("r2", bare(30, 2, "blue lamp"), bare(3, 2, "green bag"))
    assert counts == (21, 21, 0, 2), "the picture of p003 is gone"
    assert changed["p030"]["vector"] @ found["p030"]["vector"] < 0.99
    assert (finds("blue lamp"), finds("green bag")) == ("p030", "p003")

    counts, found = after("r3", live.upsert(30, 3, seed=90), bare(31, 3, "shoe"))
    assert counts == (22, 22, 0, 2)
    assert found["p030"]["image_uri"] == "images/new-90.jpg"
    assert finds("blue lamp") != "p030"

    counts, _ = after("r4", live.delete(31, 4), live.upsert(3, 4))
    assert counts == (21, 21, 0, 0)

    after("r5", bare(32, 5, "bag"))
    live.environment["VITRINE_TEXT_ONLY"] = "false"
    live.send(bare(33, 6, "lamp"), live.upsert(4, 6))
    made = live.refresh("r6")
    counts = live.registry.index_manifest(made.version).counts
    assert (counts.catalogue, counts.titles) == (22, 1), "one that is not sent again stays until the next rebuild"
    with live.queue() as source:
        assert [letter.reason for letter in source.dead_letters(9)] == [
            "the product has no image; every product needs title and image"
        ]
    assert np.isfinite(live.searcher(made.version).vector(0)).all()


def test_a_night_takes_them_in_and_the_setting_makes_another_version(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch, words=True)
    titles = {"p003": "red mug", "p007": "green bag", "p011": "blue lamp"}
    rows = read_table(live.shop.catalog / "products.csv")
    bare = {product_id: {"title": title, "image": ""} for product_id, title in titles.items()}
    bare["p013"] = {"image": "images/lost.jpg"}
    write_table(live.shop.catalog / "products.csv", [row | bare.get(row["product_id"], {}) for row in rows])
    live.registry.set_alias(ENCODER_MODEL, "champion", "1")
    live.environment |= {"VITRINE_TEXT_ONLY": "true", "VITRINE_ENOUGH_PHOTOS": "0", "VITRINE_MOST_QUARANTINED": "0.1"}
    live.use()
    without_spark(monkeypatch)

    notes = preconditions.check_preconditions(training=False).notes
    assert "3 products have no picture and are found by words alone: VITRINE_TEXT_ONLY" in notes
    made = make_version("night")
    assert made.passed, made.summary
    manifest = live.registry.index_manifest(made.version)
    counts = manifest.counts
    assert (counts.catalogue, counts.embedded, counts.quarantined, counts.titles, counts.pictures) == (60, 59, 1, 3, None)
    (reconciled,) = [gate for gate in manifest.gates if gate.name == "reconciled"]
    assert "; 3 have no picture and are found by words alone" in reconciled.reason
    found = live.found(made.version)
    assert set(found) == {row["product_id"] for row in rows} - {"p013"}
    text = TextEncoder.open(EncoderFolder(tmp_path / "tiny/0-16"))
    assert text is not None
    for product, title in titles.items():
        np.testing.assert_allclose(found[product]["vector"], text.encode(title), atol=1e-2)

    live.shop.point(live=made.version)
    encoder = rebuild_index.choose_encoder()
    assert not rebuild_index.something_changed(common.take_snapshot("again"), encoder)
    monkeypatch.setenv("VITRINE_TEXT_ONLY", "false")
    without = common.take_snapshot("without")
    assert (without.rows, without.quarantined_rows) == (57, 3)
    assert rebuild_index.something_changed(without, encoder)

    live.shop.words = False
    live.registry.set_alias(ENCODER_MODEL, "champion", live.shop.encoder(seed=1))
    preconditions.check_preconditions(training=False)
    monkeypatch.setenv("VITRINE_TEXT_ONLY", "true")
    with pytest.raises(
        VitrineError, match="encoder version 2, the champion, has no text tower, so that products without a picture"
    ):
        preconditions.check_preconditions(training=False)
