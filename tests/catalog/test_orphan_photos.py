"""A product with labelled photos is deleted: whatever reads the photos goes on without them and says how many there were."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from tasks.catalog.load import load_folder
from tasks.catalog.snapshot import Snapshot, photo_table, read_snapshot, take_snapshot
from tasks.encoder.data.photos import read_training_set
from tasks.release.gates.end_to_end_eval import held_out_queries
from tasks.validate.snapshot import SnapshotLimits, check_snapshot
from tests.catalogs import read_table, small_catalog, write_table
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

TOLD = "labelled photos left out because their product is not in the catalogue: "
Shop = tuple[str, Callable[[str], None]]
"""A catalogue's uri, and how products whose id is at least so large are deleted from it; their photos stay."""


def csv_shop(folder: Path) -> Shop:
    def delete(first: str) -> None:
        write_table(folder / "products.csv", [r for r in read_table(folder / "products.csv") if r["product_id"] < first])

    return str(folder), delete


def parquet_shop(folder: Path) -> Shop:
    for name in ("products", "photos"):
        pq.write_table(pacsv.read_csv(folder / f"{name}.csv"), folder / f"{name}.parquet")
        (folder / f"{name}.csv").unlink()

    def delete(first: str) -> None:
        products = pq.read_table(folder / "products.parquet")
        pq.write_table(products.filter(pc.less(products["product_id"], first)), folder / "products.parquet")

    return str(folder), delete


def sqlite_shop(folder: Path) -> Shop:
    path = folder / "shop.db"
    load_folder(folder, f"sqlite:///{path}")

    def delete(first: str) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DELETE FROM products WHERE product_id >= ?", (first,))

    return f"sqlite:///{path}", delete


def postgres_shop(folder: Path, server: str) -> Shop:
    from adbc_driver_postgresql import dbapi

    load_folder(folder, server)

    def delete(first: str) -> None:
        with dbapi.connect(server, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM products WHERE product_id >= '{first}'")

    return f"{server}{'&' if '?' in server else '?'}image_root={folder}", delete


@pytest.fixture(params=["csv", "parquet", "sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """Twelve products with two train photos and a held-out one each, in every kind of source."""
    folder = small_catalog(tmp_path / "shop")
    if request.param == "postgres":
        with postgres_server() as server:
            yield postgres_shop(folder, server)
    else:
        yield {"csv": csv_shop, "parquet": parquet_shop, "sqlite": sqlite_shop}[request.param](folder)


def taken(uri: str, folder: Path, name: str) -> Snapshot:
    return take_snapshot(uri, str(folder / "snapshots"), name)


def test_a_deleted_products_photos_are_left_out_counted_and_told(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, delete = shop
    before = taken(uri, tmp_path, "before")
    assert (before.orphan_photos, before.orphans) == (0, "")
    delete("p011")
    with caplog.at_level("WARNING"):
        now = taken(uri, tmp_path, "now")
    assert (now.rows, now.photos, now.orphan_photos) == (11, 33, 3)
    assert "p011" not in photo_table(now.uri)["product_id"].to_pylist()
    assert "3 of 36 photos show a product that is not in the catalogue and are left out" in caplog.text
    assert "'photos/11-0.jpg' shows product 'p011'" in caplog.text
    assert read_snapshot(now.uri) == now
    assert json.loads((Path(now.uri) / "_manifest.json").read_text())["snapshot"]["orphan_photos"] == 3

    valid = check_snapshot(now, before, tmp_path / "docs", SnapshotLimits())
    assert valid.passed, valid.sentence
    assert valid.sentence.endswith(f"; {TOLD}3")

    training, whole = (read_training_set(s.uri) for s in (now, before))
    assert training.orphans == f"{TOLD}3"
    for split, photos in training.by_split.items():
        assert set(photos.uris) == {u for u in whole.split(split).uris if not u.startswith("photos/11-")}
    assert {q.product_id for q in held_out_queries(now)} == {f"p{n:03d}" for n in range(11)}


def test_the_content_of_a_snapshot_does_not_depend_on_photos_that_are_left_out(shop: Shop, tmp_path: Path) -> None:
    uri, delete = shop
    delete("p011")
    now = taken(uri, tmp_path, "now")
    folder = tmp_path / "shop"
    clean = tmp_path / "clean"
    clean.mkdir()
    for kind in ("products", "photos"):
        source = folder / f"{kind}.csv"
        rows = read_table(source) if source.exists() else pq.read_table(folder / f"{kind}.parquet").to_pylist()
        write_table(clean / f"{kind}.csv", [r for r in rows if r["product_id"] < "p011"])
    without = taken(str(clean), tmp_path, "clean")
    assert photo_table(now.uri).equals(photo_table(without.uri))
    assert (without.orphan_photos, without.photos) == (0, now.photos)


def test_where_all_photos_are_orphans_there_are_none_and_it_says_why(tmp_path: Path) -> None:
    folder = small_catalog(tmp_path / "shop")
    write_table(folder / "products.csv", [{"product_id": "q1", "title": "another", "image": "images/0.jpg"}])
    none = taken(str(folder), tmp_path, "none")
    assert (none.photos, none.orphan_photos) == (0, 36)
    for days in (0, 30):
        training = read_training_set(none.uri, days)
        assert (len(training.split("train")), training.orphans) == (0, f"{TOLD}36")
    assert held_out_queries(none) == []


def test_snapshots_of_before_are_read_as_having_left_out_nothing(tmp_path: Path) -> None:
    snapshot = taken(str(small_catalog(tmp_path / "shop", 3)), tmp_path, "old")
    path = Path(snapshot.uri) / "_manifest.json"
    record = json.loads(path.read_text())
    del record["snapshot"]["orphan_photos"]
    path.write_text(json.dumps(record))
    assert read_snapshot(snapshot.uri) == snapshot


def test_photos_of_products_deleted_since_the_snapshot_are_left_out_before_they_are_thinned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = taken(str(small_catalog(tmp_path / "shop")), tmp_path, "one")
    with caplog.at_level("INFO"):
        asked = held_out_queries(snapshot, 5, {"p000", "p001", "unknown"})
    assert len(asked) == 5
    assert not {"p000", "p001"} & {q.product_id for q in asked}
    assert "2 of 12 queries show products deleted since snapshot one: left out" in caplog.text
    assert held_out_queries(snapshot, deleted={f"p{n:03d}" for n in range(12)}) == []
