"""What the demo shows of its answers."""

import io
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from rich.console import Console

from tasks.catalog.snapshot import product_table, take_snapshot
from tasks.demo import show
from tasks.release.gates.end_to_end_eval import Query
from tasks.settings import Settings
from tests.catalogs import read_table, small_catalog, write_table


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of eight products, of which p001 shows the picture of p000; its photos are gone."""
    shop = small_catalog(tmp_path_factory.mktemp("twins") / "shop", 8)
    rows = read_table(shop / "products.csv")
    rows[1]["image"] = rows[0]["image"]
    write_table(shop / "products.csv", rows)
    for photo in read_table(shop / "photos.csv"):
        (shop / photo["photo"]).unlink()
    return shop


def test_a_view_shows_every_product_with_its_picture_and_a_photo_its_own(twins: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(str(twins), str(tmp_path), "one")
    uri = product_table(snapshot.uri, ["image_uri"])["image_uri"].to_pylist()[0]
    right = show.right_products([Query("views/p000.jpg", "p000", uri), Query("photos/p000.jpg", "p000")], snapshot)
    assert right == [{"p000", "p001"}, {"p000"}]
    xb, ids = np.eye(3, dtype=np.float32), np.array(["p001", "p000", "p002"])
    line = show._line("exact", np.array([[0.9, 0.5, 0], [0.9, 0.5, 0]], np.float32), right, xb, ids)
    assert (line.recall_at_1, line.recall_at_10) == (0.5, 1.0)


def test_without_a_photo_that_can_be_read_the_demo_says_so(twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = take_snapshot(str(twins), str(tmp_path), "one")
    manifest = SimpleNamespace(snapshot=snapshot)
    registry = SimpleNamespace(
        require_alias=lambda *_: SimpleNamespace(version="1"), index_manifest=lambda _: manifest, file=None
    )
    monkeypatch.setattr(show, "Registry", lambda *_, **__: registry)
    monkeypatch.setattr(show, "_wait_until_live", lambda *_: None)
    monkeypatch.setattr(show, "ledger_of", lambda *_: None)
    monkeypatch.setattr(show, "deleted_products", lambda _: ())
    monkeypatch.setattr(httpx.Client, "post", lambda *_: pytest.fail("nothing can be sent"))
    text = io.StringIO()
    assert show.show_answers(Settings(serving_urls=("http://127.0.0.1:1",)), Console(file=text, width=200)) == []
    assert "none of 8 held-out photos can be read" in text.getvalue()
