"""The hourly path of products without a picture: found by words, with exact counts, whatever becomes of them."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.versions.text_encoder import TextEncoder
from tasks.catalog.changes.event import Event, upsert
from tasks.catalog.schema import RowLimits
from tasks.registry import INDEX_MODEL
from tasks.release.trace import trace_product
from tests.catalog.changes.refreshed import LiveShop, at, own_mlflow

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
