"""Snapshots: the same rows from every kind of source, one sentence for what is wrong, nothing half-written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog import schema
from tasks.catalog.load import Loaded, load_folder
from tasks.catalog.snapshot import photo_table, product_batches, product_table, read_snapshot, take_snapshot
from tasks.catalog.sources.source import SourceOptions
from tasks.embed.images import read_image
from tasks.encoder.data.photos import read_training_set
from tasks.errors import CatalogError, CatalogMissing
from tests.catalogs import read_table, small_catalog, write_table
from tests.servers import postgres_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_catalog(tmp_path / "shop")


def test_a_snapshot_holds_every_product_and_photo(folder: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(str(folder), str(tmp_path / "snapshots"), "one")
    table = product_table(snapshot.uri)
    assert snapshot.rows == len(table) == 12
    assert table["product_id"].to_pylist() == sorted(table["product_id"].to_pylist())
    assert table["category"][1].as_py() == ["kind 1", "leaf 1"]
    assert table["in_stock"].to_pylist()[:2] == [False, True]
    assert table.schema.field("updated_at").type == schema.UPDATED_AT
    assert len(photo_table(snapshot.uri)) == snapshot.photos == 36
    assert read_snapshot(snapshot.uri) == snapshot
    assert [b.num_rows for b in product_batches(snapshot.uri, ["key"])] == [12]


def test_the_content_hash_depends_on_the_rows_and_on_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = take_snapshot(str(folder), str(tmp_path / "a"), "one")
    again = take_snapshot(str(folder), str(tmp_path / "b"), "two")
    rows = read_table(folder / "products.csv")
    write_table(folder / "products.csv", rows[::-1])
    reordered = take_snapshot(str(folder), str(tmp_path / "b"), "three")
    assert first.content_sha256 == again.content_sha256 == reordered.content_sha256
    rows[3]["price"] = "999"
    write_table(folder / "products.csv", rows)
    assert take_snapshot(str(folder), str(tmp_path / "b"), "four").content_sha256 != first.content_sha256


def test_taking_a_snapshot_twice_gives_the_first(folder: Path, tmp_path: Path) -> None:
    first = take_snapshot(str(folder), str(tmp_path / "a"), "one")
    write_table(folder / "products.csv", read_table(folder / "products.csv")[:5])
    assert take_snapshot(str(folder), str(tmp_path / "a"), "one") == first


def test_parts_left_by_a_killed_attempt_do_not_count(folder: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "a" / "one" / "part-00007.parquet"
    leftover.parent.mkdir(parents=True)
    pq.write_table(pa.table({"product_id": ["ghost"]}), leftover)
    with pytest.raises(CatalogError, match="no snapshot was published"):
        read_snapshot(str(tmp_path / "a" / "one"))
    snapshot = take_snapshot(str(folder), str(tmp_path / "a"), "one")
    assert not leftover.exists()
    assert "ghost" not in product_table(snapshot.uri)["product_id"].to_pylist()


def test_sqlite_gives_the_same_products_as_the_folder(folder: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shop.db"
    assert load_folder(folder, uri) == Loaded(12, 36, [])
    load_folder(folder, uri)
    columns = [n for n in schema.PRODUCT_SCHEMA.names if n != "image_uri"]
    here = take_snapshot(str(folder), str(tmp_path / "a"), "one")
    there = take_snapshot(uri, str(tmp_path / "a"), "two")
    assert product_table(there.uri, columns).equals(product_table(here.uri, columns))
    assert (Path(there.image_root) / product_table(there.uri)["image_uri"][0].as_py()).is_file()
    assert (Path(there.image_root) / photo_table(there.uri)["photo_uri"][0].as_py()).is_file()


def test_pictures_by_absolute_path_are_found_from_the_folder_and_from_the_database(folder: Path, tmp_path: Path) -> None:
    rows = read_table(folder / "products.csv")
    absolute = folder / rows[0]["image"]
    write_table(folder / "products.csv", [rows[0] | {"image": str(absolute)}, rows[1] | {"image": absolute.as_uri()}, *rows[2:]])
    uri = f"sqlite:///{tmp_path}/shop.db"
    load_folder(folder, uri)
    for name, source in {"folder": str(folder), "sqlite": uri}.items():
        snapshot = take_snapshot(source, str(tmp_path / "a"), name)
        for picture in product_table(snapshot.uri)["image_uri"].to_pylist():
            assert read_image(picture, snapshot.image_root)


@pytest.mark.slow
def test_postgresql_gives_the_same_products_as_sqlite(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = postgres_package().get_server(tmp_path / "pg", cleanup_mode="stop")
    try:
        uri = server.get_uri()
        load_folder(folder, uri)
        there = take_snapshot(f"{uri}{'&' if '?' in uri else '?'}image_root={folder}", str(tmp_path / "a"), "pg")
        here = take_snapshot(str(folder), str(tmp_path / "a"), "folder")
        assert product_table(there.uri).equals(product_table(here.uri))
        assert there.content_sha256 == here.content_sha256
        assert there.image_root == str(folder)
    finally:
        server.cleanup()


def _without(column: str):  # type: ignore[no-untyped-def]
    return lambda rows: [{k: v for k, v in r.items() if k != column} for r in rows]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("products", _without("title"), "the column title is missing; found product_id"),
        ("products", _without("image"), "the column image is missing"),
        ("products", lambda rows: [*rows, rows[2]], "product_id 'p002' occurs more than once"),
        (
            "products",
            lambda rows: [r | {"title": ""} for r in rows],
            "none of its 12 rows can be used; the first: product 'p000': title",
        ),
        ("photos", lambda rows: [rows[0] | {"split": "exam"}, *rows[1:]], "split 'exam' is not one of train, val, test"),
        ("photos", _without("product_id"), "the column product_id is missing"),
    ],
)
def test_an_unusable_catalogue_gets_one_sentence_and_no_snapshot(
    folder: Path, tmp_path: Path, table: str, change, message: str
) -> None:  # type: ignore[no-untyped-def]
    path = folder / f"{table}.csv"
    write_table(path, change(read_table(path)))
    with pytest.raises(CatalogError, match=message) as caught:
        take_snapshot(str(folder), str(tmp_path / "a"), "one")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a" / "one" / "_manifest.json").exists()


def test_an_empty_photos_file_and_an_empty_catalogue_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "photos.csv").write_text("photo,product_id,split\n")
    with pytest.raises(CatalogError, match=r"photos\.csv has no rows"):
        take_snapshot(str(folder), str(tmp_path / "a"), "one")
    (folder / "photos.csv").unlink()
    (folder / "products.csv").write_text("product_id,title,image\n")
    with pytest.raises(CatalogError, match="no products"):
        take_snapshot(str(folder), str(tmp_path / "a"), "one")
    with pytest.raises(CatalogError, match="no such database"):
        take_snapshot(f"sqlite:///{tmp_path}/none.db", str(tmp_path / "a"), "one")


def test_two_ids_with_one_key_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(schema, "product_keys", lambda ids: np.zeros(len(ids), np.int64))
    with pytest.raises(CatalogError, match="'p000' and 'p001' have the same key"):
        take_snapshot(str(folder), str(tmp_path / "a"), "one")


def test_a_catalogue_that_is_not_there_yet_is_told_apart_from_a_bad_one(folder: Path, tmp_path: Path) -> None:
    for name, statement in {
        "empty.db": "CREATE TABLE others (id TEXT)",
        "no-products.db": "CREATE TABLE products (product_id TEXT, title TEXT, image TEXT)",
    }.items():
        with closing(sqlite3.connect(tmp_path / name)) as database:
            database.execute(statement)
    (tmp_path / "nothing").mkdir()
    missing = {
        f"sqlite:///{tmp_path}/none.db": "no such database",
        f"sqlite:///{tmp_path}/empty.db": "no table products",
        f"sqlite:///{tmp_path}/no-products.db": "has no products",
        f"{tmp_path}/none": "no such catalogue folder",
        f"{tmp_path}/nothing": "neither products.csv nor",
    }
    for uri, words in missing.items():
        with pytest.raises(CatalogMissing, match=words):
            take_snapshot(uri, str(tmp_path / "snapshots"), "missing")
    (folder / "products.csv").write_text("product_id,title\np1,one\n")
    with pytest.raises(CatalogError, match="column image") as bad:
        take_snapshot(str(folder), str(tmp_path / "snapshots"), "bad")
    assert not isinstance(bad.value, CatalogMissing)


def test_pictures_whose_addresses_are_too_long_are_named_all_the_same() -> None:
    images = pa.array([["a-long-address"], [], ["a-long-address", "c.jpg"]])
    batch = pa.record_batch({"product_id": ["a", "b", "c"], "title": ["A", "B", "C"], "image": ["", "", ""], "images": images})
    found = schema.read_products(batch, "shop", schema.RowLimits(longest_uri=10, text_only=True))
    assert found.table.select(["product_id", "image_uri"]).to_pylist() == [
        {"product_id": "b", "image_uri": ""}, {"product_id": "c", "image_uri": "c.jpg"},
    ]  # fmt: skip
    assert [row.sentence for row in found.unusable] == [
        "product 'a': image: every address is longer than 10: VITRINE_MAX_URI_LENGTH"
    ]


def test_a_product_without_a_picture_is_one_only_where_words_find_it(folder: Path, tmp_path: Path) -> None:
    rows = read_table(folder / "products.csv")
    write_table(folder / "products.csv", [row | {"image": "" if n in (1, 4) else row["image"]} for n, row in enumerate(rows)])
    without = take_snapshot(str(folder), str(tmp_path / "snapshots"), "without")
    assert (without.rows, without.titles, without.quarantined_rows) == (10, 0, 2)
    options = SourceOptions(limits=schema.RowLimits(text_only=True))
    taken = take_snapshot(str(folder), str(tmp_path / "snapshots"), "with", options)
    assert (taken.rows, taken.titles, taken.quarantined_rows, taken.pictures) == (12, 2, 0, 12)
    assert product_table(taken.uri)["image_uri"].to_pylist().count("") == 2
    load_folder(folder, f"sqlite:///{tmp_path / 'shop.db'}", options)
    loaded = take_snapshot(f"sqlite:///{tmp_path / 'shop.db'}", str(tmp_path / "snapshots"), "loaded", options)
    assert (loaded.rows, loaded.titles) == (12, 2)
    assert (taken.photos, taken.orphan_photos) == (without.photos, without.orphan_photos) == (30, 6), "no photo finds them"
    assert len(read_training_set(taken.uri).product_ids) == 10, "and they teach an encoder of pictures nothing"
    assert read_training_set(taken.uri).image_uris == read_training_set(without.uri).image_uris
