"""Several pictures of a product: main and further ones, from every place that a catalogue keeps them in, against brute force."""

import csv
import hashlib
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.catalog import snapshot as snapshots
from tasks.catalog.changes.comparison import content_digests
from tasks.catalog.column_mapping import ColumnMapping
from tasks.catalog.load import load_folder
from tasks.catalog.product_pictures import IMAGES, choose_pictures, picture_rows
from tasks.catalog.schema import RowLimits
from tasks.catalog.snapshot import product_batches, product_table, take_snapshot
from tasks.catalog.sources import SourceOptions, open_source, pictures, sorting
from tasks.embed.image_hash_cache import snapshot_pictures
from tasks.errors import CatalogError
from tests.catalog.sources.test_tables import iceberg_catalog, make_iceberg
from tests.catalogs import write_table
from tests.servers import postgres_server

pytestmark = pytest.mark.slow

ADDRESSES = st.lists(st.sampled_from(["a", "b", "c", "d", "a-long-address", ""]), max_size=6)


@settings(deadline=None)
@given(st.sampled_from(["", "a", "z"]), ADDRESSES, st.integers(1, 4))
def test_a_product_has_each_picture_once_its_main_one_first(main: str, listed: list[str], most: int) -> None:
    chosen, further, left_out = choose_pictures(main, listed, 10, most)
    short = [uri for uri in listed if uri and len(uri) <= 10]
    whole = [main, *further] if main else ([chosen, *further] if chosen else [])
    expected = list(dict.fromkeys(([main] if main else []) + short))
    assert whole == expected[:most]
    assert left_out == len({uri for uri in listed if uri} | set(expected)) - len(whole)


@settings(deadline=None)
@given(st.lists(st.lists(st.text("xyz", min_size=1, max_size=2), max_size=4), min_size=1, max_size=6), st.integers(0, 2))
def test_pictures_are_rows_in_order_of_product_and_position(lists: list[list[str]], skipped: int) -> None:
    table = pa.table({
        "key": list(range(len(lists))), "image_uri": [f"main{n}" for n in range(len(lists))],
        IMAGES: pa.array(lists, pa.list_(pa.string())),
    }).slice(skipped)  # fmt: skip
    expected = [
        (key, position, uri)
        for key, further in list(enumerate(lists))[skipped:]
        for position, uri in enumerate([f"main{key}", *further])
    ]
    assert [tuple(row.values()) for row in picture_rows(table).to_pylist()] == expected
    alone = picture_rows(table.drop_columns([IMAGES]))
    assert [tuple(row.values()) for row in alone.to_pylist()] == [row for row in expected if row[1] == 0]


def drawn(seed: int, products: int = 60) -> tuple[list[dict], list[dict], dict[str, list[str]]]:
    """Random products, rows of product_images in any order, and the pictures that each product has."""
    rng = random.Random(seed)
    rows: list[dict] = []
    shown: list[dict] = []
    expected = {}
    for number in range(products):
        product = f"p{rng.randrange(10**6)}-{number}"
        uris = [f"images/{rng.randrange(30)}.jpg" for _ in range(rng.randrange(7))]
        own = [f"images/own-{rng.randrange(5)}.jpg" for _ in range(rng.randrange(3))]
        main = rng.choice(["", f"images/{rng.randrange(30)}.jpg"]) if uris or own else "images/only.jpg"
        rows.append({"product_id": product, "title": f"T {number}", "image": main, IMAGES: json.dumps(own) if own else ""})
        numbered = [(float(rng.randrange(4)) if rng.random() < 0.8 else None, uri) for uri in uris]
        for position, uri in numbered:
            shown.append({
                "product_id": product, "image": uri, "position": "" if position is None else position,
                "kind": rng.choice(["", "front", "Detail"]),
            })  # fmt: skip
        for kind in rng.sample(["swatch", " Video", "3d"], rng.randrange(3)):
            shown.append({"product_id": product, "image": f"images/{kind.strip()}.mp4", "position": 0, "kind": kind})
        numbered.sort(key=lambda pair: (pair[0] is None, pair[0] or 0, pair[1]))
        expected[product] = list(dict.fromkeys(([main] if main else []) + own + [uri for _, uri in numbered]))[:4]
    shown += [{"product_id": "unknown", "image": "images/x.jpg", "position": 1, "kind": ""}]
    shown += [{"product_id": rows[0]["product_id"], "image": "", "position": 1, "kind": ""}]
    rng.shuffle(rows)
    rng.shuffle(shown)
    return rows, shown, expected


def csv_folder(folder: Path, rows: list[dict], shown: list[dict]) -> str:
    folder.mkdir()
    write_table(folder / "products.csv", rows)
    write_table(folder / "images.csv", shown)
    return str(folder)


def parquet_folder(folder: Path, rows: list[dict], shown: list[dict]) -> str:
    folder.mkdir()
    lists = [row | {IMAGES: json.loads(row[IMAGES] or "[]")} for row in rows]
    pq.write_table(pa.Table.from_pylist(lists), folder / "products.parquet")
    numbered = [row | {"position": None if row["position"] == "" else float(row["position"])} for row in shown]
    pq.write_table(pa.Table.from_pylist(numbered), folder / "images.parquet")
    return str(folder)


def database(folder: Path, rows: list[dict], shown: list[dict]) -> str:
    folder.mkdir()
    with closing(sqlite3.connect(folder / "shop.db")) as connection, connection:
        connection.execute("CREATE TABLE products (product_id text, title text, image text, images text)")
        connection.executemany("INSERT INTO products VALUES (:product_id, :title, :image, :images)", rows)
        connection.execute("CREATE TABLE product_images (product_id text, image text, position int, kind text)")
        rest = [row | {"position": None if row["position"] == "" else row["position"]} for row in shown]
        connection.executemany("INSERT INTO product_images VALUES (:product_id, :image, :position, :kind)", rest)
    return f"sqlite:///{folder}/shop.db"


def tables(folder: Path, rows: list[dict], shown: list[dict]) -> str:
    parquet_folder(folder, rows, shown)
    return f"parquet:{folder}/products.parquet?images={folder}/images.parquet&image_root={folder}"


SOURCES = [csv_folder, parquet_folder, database, tables]
OPTIONS = SourceOptions(limits=RowLimits(most_pictures=4))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and parts of a few rows, and rows sorted on disk."""
    monkeypatch.setattr(snapshots, "PART_ROWS", 25)
    monkeypatch.setattr(pictures, "BATCH_ROWS", 7)
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 2000)
    for module in ("folder", "sqlite", "tables"):
        monkeypatch.setattr(f"tasks.catalog.sources.{module}.BATCH_ROWS", 8)


@pytest.mark.parametrize("seed", range(3))
def test_every_source_gives_the_same_pictures(seed: int, tmp_path: Path, small: None) -> None:
    rows, shown, expected = drawn(seed)
    taken = [
        take_snapshot(make(tmp_path / make.__name__, rows, shown), str(tmp_path / "s"), make.__name__, OPTIONS)
        for make in SOURCES
    ]
    for one in taken:
        table = product_table(one.uri, ["product_id", "image_uri", IMAGES])
        assert {r["product_id"]: [r["image_uri"], *r[IMAGES]] for r in table.to_pylist()} == expected
        assert one.pictures == sum(map(len, expected.values()))
    assert len({one.content_sha256 for one in taken}) == 1
    assert len({one.pictures_left_out for one in taken}) == 1
    assert taken[0].pictures_left_out > 0


def test_a_catalogue_without_further_pictures_has_the_snapshot_it_always_had(tmp_path: Path, small: None) -> None:
    plain = [{"product_id": f"p{n}", "title": f"T {n}", "image": f"images/{n}.jpg"} for n in range(40)]
    for name, rows in {"a": plain, "b": [row | {IMAGES: "[]"} for row in plain], "c": plain}.items():
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "products.csv", rows)
    again = [{"product_id": row["product_id"], "image": row["image"]} for row in plain]
    write_table(tmp_path / "c" / "images.csv", again)
    taken = [take_snapshot(str(tmp_path / name), str(tmp_path / "s"), name) for name in "abc"]
    assert len({one.content_sha256 for one in taken}) == 1
    assert all(IMAGES not in batch.schema.names for one in taken for batch in product_batches(one.uri))
    for name in ("part-00000.parquet", "part-00001.parquet"):
        assert len({Path(one.uri, name).read_bytes() for one in taken}) == 1


def test_parts_with_and_without_further_pictures_are_read_as_one_table(tmp_path: Path, small: None) -> None:
    rows = [{"product_id": f"p{n:02d}", "title": "T", "image": "a.jpg", IMAGES: "", "size": n} for n in range(60)]
    rows[55][IMAGES] = '["b.jpg", "c.jpg"]'
    (tmp_path / "shop").mkdir()
    write_table(tmp_path / "shop" / "products.csv", rows)
    taken = take_snapshot(str(tmp_path / "shop"), str(tmp_path / "s"), "one")
    table = product_table(taken.uri)
    assert table[IMAGES].to_pylist() == [[]] * 55 + [["b.jpg", "c.jpg"]] + [[]] * 4
    assert "size" in table.column_names
    assert product_table(taken.uri, ["key", IMAGES]).num_columns == 2
    assert (taken.pictures, taken.further_pictures) == (62, 2)


def test_loading_a_folder_into_a_database_takes_its_pictures_along(tmp_path: Path) -> None:
    rows, shown, _ = drawn(9, 20)
    folder = csv_folder(tmp_path / "shop", rows, shown)
    uri = f"sqlite:///{tmp_path}/shop/shop.db"
    load_folder(Path(folder), uri, OPTIONS)
    there = take_snapshot(uri, str(tmp_path / "s"), "there", OPTIONS)
    here = take_snapshot(folder, str(tmp_path / "s"), "here", OPTIONS)
    assert there.content_sha256 == here.content_sha256
    load_folder(Path(folder), uri, SourceOptions(limits=RowLimits(most_pictures=1)))
    assert take_snapshot(uri, str(tmp_path / "s"), "again", OPTIONS).further_pictures == 0, "nothing of the former load is left"


@pytest.mark.parametrize(
    ("value", "says"),
    [("a.jpg|b.jpg", "not a JSON array of addresses"), ('[{"src": "a.jpg"}]', "a list of texts"), ('{"a": 1}', "an object")],
)
def test_a_list_that_cannot_be_read_sets_its_row_aside(value: str, says: str, tmp_path: Path) -> None:
    rows = [{"product_id": f"p{n}", "title": "T", "image": "a.jpg", IMAGES: value if n == 1 else ""} for n in range(3)]
    write_table(tmp_path / "products.csv", rows)
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert (taken.rows, taken.quarantined_rows) == (2, 1)
    (row,) = snapshots.unusable_rows(taken.uri)
    assert (row["product_id"], row["column"]) == ("p1", IMAGES)
    assert says in row["problem"]


def test_a_column_that_is_no_list_is_left_out_and_named(tmp_path: Path) -> None:
    table = pa.table({"product_id": ["p"], "title": ["T"], "image": ["a.jpg"], IMAGES: [7]})
    pq.write_table(table, tmp_path / "products.parquet")
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert "no list of pictures" in taken.left_out[IMAGES]
    assert taken.further_pictures == 0


def test_a_shops_own_table_of_that_name_is_named_and_a_file_refused(tmp_path: Path) -> None:
    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    write(tmp_path / "products.csv", [{"product_id": "p", "title": "T", "image": "a.jpg"}])
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute("CREATE TABLE products (product_id text, title text, image text)")
        connection.execute("INSERT INTO products VALUES ('p', 'T', 'a.jpg')")
        connection.execute("CREATE TABLE product_images (id int, url text)")
    taken = take_snapshot(f"sqlite:///{tmp_path}/shop.db", str(tmp_path / "s"), "database")
    assert taken.left_out == {"product_images": "the table has no column image"}
    write(tmp_path / "images.csv", [{"product_id": "p", "url": "b.jpg"}])
    with pytest.raises(CatalogError, match="images: the column image is missing; found product_id, url"):
        take_snapshot(str(tmp_path), str(tmp_path / "s"), "folder")


def test_lakes_and_postgresql_give_the_same_pictures(tmp_path: Path, small: None) -> None:
    from adbc_driver_postgresql import dbapi
    from deltalake import write_deltalake

    rows, shown, expected = drawn(4)
    folder = Path(parquet_folder(tmp_path / "parquet", rows, shown))
    products, images = (pq.read_table(folder / f"{name}.parquet") for name in ("products", "images"))
    write_deltalake(str(tmp_path / "delta"), products)
    write_deltalake(str(tmp_path / "pictures"), images)
    catalog = iceberg_catalog(tmp_path)
    make_iceberg(catalog, products)
    catalog.create_table("ns.images", schema=images.schema).append(images)
    with postgres_server() as server:
        with dbapi.connect(server) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE products (product_id text, title text, image text, images jsonb)")
            texts = products.set_column(3, "images", pa.array([json.dumps(r) for r in products["images"].to_pylist()]))
            cursor.adbc_ingest("staged", texts)
            cursor.execute("INSERT INTO products SELECT product_id, title, image, images::jsonb FROM staged")
            cursor.adbc_ingest("product_images", images)
            connection.commit()
        addresses = {
            "folder": str(folder), "delta": f"delta:{tmp_path}/delta?images={tmp_path}/pictures",
            "mixed": f"delta:{tmp_path}/delta?images=parquet:{folder}/images.parquet",
            "iceberg": f"iceberg:{tmp_path}/wh/ns/products?images={tmp_path}/wh/ns/images", "postgresql": server,
        }  # fmt: skip
        taken = {name: take_snapshot(address, str(tmp_path / "s"), name, OPTIONS) for name, address in addresses.items()}
        with open_source(addresses["delta"]) as source:
            moment = source.moment
        write_deltalake(str(tmp_path / "pictures"), images.slice(1), mode="overwrite")
        with open_source(addresses["delta"]) as source:
            assert source.moment != moment, "another picture is another moment"
    catalog.close()
    assert len({one.content_sha256 for one in taken.values()}) == 1
    assert taken["postgresql"].pictures == sum(map(len, expected.values()))


def test_a_role_without_rights_to_the_pictures_reads_the_products(tmp_path: Path) -> None:
    from adbc_driver_postgresql import dbapi

    with postgres_server() as server:
        with dbapi.connect(server) as connection, connection.cursor() as cursor:
            for command in (
                "CREATE TABLE products (product_id text, title text, image text)", "INSERT INTO products VALUES ('p', 'T', 'a.jpg')",
                "CREATE TABLE product_images (product_id text, image text)", "INSERT INTO product_images VALUES ('p', 'b.jpg')",
                "CREATE ROLE reader LOGIN", "GRANT SELECT ON products TO reader",
            ):  # fmt: skip
                cursor.execute(command)
            connection.commit()
        assert take_snapshot(server, str(tmp_path), "owner").further_pictures == 1
        assert take_snapshot(server.replace("//postgres", "//reader", 1), str(tmp_path), "reader").further_pictures == 0


def test_pictures_are_computed_from_columns(tmp_path: Path) -> None:
    rows = [{"product_id": "p", "title": "T", "image": "a.jpg", "second": "b.jpg", "third": ""}]
    write_table(tmp_path / "products.csv", rows)
    mapping = ColumnMapping.parse('{images = ["second", "third", "https://cdn.example/{product_id}_4.jpg"]}')
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one", SourceOptions(columns=mapping))
    assert product_table(taken.uri)[IMAGES].to_pylist() == [["b.jpg", "https://cdn.example/p_4.jpg"]]


@pytest.mark.parametrize("own", [pa.array([3]), pa.array(["b.jpg"])])
def test_a_snapshot_from_before_with_a_column_images_of_its_own_is_compared_and_embedded_as_it_was(
    own: pa.Array, tmp_path: Path
) -> None:
    write_table(tmp_path / "products.csv", [{"product_id": "p", "title": "x", "image": "a.jpg"}])
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    plain = product_table(taken.uri)
    before = plain.append_column(IMAGES, own)
    assert content_digests(before, []) == content_digests(plain, [])
    part = Path(taken.uri) / "part-00000.parquet"
    pq.write_table(before, part)
    manifest = json.loads((Path(taken.uri) / snapshots.MANIFEST).read_text())
    manifest["files"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
    (Path(taken.uri) / snapshots.MANIFEST).write_text(json.dumps(manifest))
    assert snapshot_pictures(taken)["image_uri"].to_pylist() == ["a.jpg"]
