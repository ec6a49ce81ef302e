"""A shop's own table, read through VITRINE_CATALOG_COLUMNS and VITRINE_CATALOG_QUERY, is the catalogue that it describes."""

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.changes.sending import events_of_file
from tasks.catalog.column_mapping import ColumnMapping
from tasks.catalog.snapshot import product_table, take_snapshot, unusable_rows
from tasks.catalog.sources import SourceOptions, folder, sorting, sqlite
from tasks.catalog.sources.query import one_select
from tasks.errors import CatalogError, SettingsError
from tests.servers import postgres_server

COLUMNS = """
product_id = "sku"
title = "name_en"
category = ["dept", "group"]
image = "https://cdn.example/{image_key}.jpg"
price = "price_cents / 100"
currency = "'EUR'"
in_stock = "stock"
margin = "price_cents - cost"
cost = ""
"""
ROWS = [
    {
        "sku": 1000 + n, "name_en": f"Thing {n}", "dept": "Shoes", "group": f"Kind {n % 3}" if n % 4 else "", "image_key": f"k{n}",
        "price_cents": 100 * n + 99, "stock": n % 2, "cost": 50, "colour": f"c{n % 2}",
    }
    for n in range(40)
]  # fmt: skip
SQL = 'sku integer, name_en text, dept text, "group" text, image_key text, price_cents integer, stock boolean, cost integer, colour text'


def options(columns: str = COLUMNS, query: str = "") -> SourceOptions:
    return SourceOptions(columns=ColumnMapping.parse(columns), query=one_select(query))


def csv_folder(path: Path) -> Path:
    path.mkdir()
    with (path / "products.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(reversed(ROWS))
    return path


def database(path: Path, table: str = "products") -> str:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE {table} ({SQL})")
        connection.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * 9)})", [tuple(r.values()) for r in ROWS])
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


def fill_postgres(uri: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS items")
        cursor.execute(f"CREATE TABLE items ({SQL})")
        values = ", ".join(
            "("
            + ", ".join(f"'{v}'" if isinstance(v, str) else str(bool(v)) if k == "stock" else str(v) for k, v in r.items())
            + ")"
            for r in ROWS
        )
        cursor.execute(f"INSERT INTO items VALUES {values}")


def test_a_mapped_folder_holds_what_the_setting_says(tmp_path: Path) -> None:
    taken = take_snapshot(str(csv_folder(tmp_path / "shop")), str(tmp_path), "s", options())
    rows = product_table(taken.uri).to_pylist()
    assert len(rows) == 40
    assert {n: rows[1][n] for n in ("product_id", "title", "category", "image_uri", "price", "currency", "in_stock")} == {
        "product_id": "1001", "title": "Thing 1", "category": ["Shoes", "Kind 1"], "image_uri": "https://cdn.example/k1.jpg",
        "price": 1.99, "currency": "EUR", "in_stock": True,
    }  # fmt: skip
    assert (rows[0]["category"], rows[0]["in_stock"]) == (["Shoes"], False)
    assert set(rows[0]) >= {"margin", "colour", "price_cents", "image_key"}
    assert not {"sku", "name_en", "cost", "stock"} & set(rows[0]), "a column that only gets another name is not there twice"
    assert taken.left_out == {"cost": "VITRINE_CATALOG_COLUMNS leaves it out"}


@pytest.mark.slow
def test_every_source_gives_the_same_products(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, and queries over them, with the id as a column and computed, in memory and sorted on disk."""
    typed = tmp_path / "parquet"
    typed.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), typed / "products.parquet")
    fill_postgres(postgres)
    database(tmp_path / "a.db")
    database(tmp_path / "b.db", "items")
    query = "SELECT i.* FROM items i -- all of them;\n WHERE sku >= 0 ;"
    computed = COLUMNS.replace('"sku"', '"{sku}"')
    cases = [
        (str(typed), ""), (f"sqlite:///{tmp_path}/a.db", ""), (f"sqlite:///{tmp_path}/b.db", query), (postgres, query),
    ]  # fmt: skip
    found = {}
    for number, (uri, asked) in enumerate(cases):
        taken = take_snapshot(uri, str(tmp_path / "s"), str(number), options(COLUMNS, asked))
        found[uri] = taken.content_sha256
        table = product_table(taken.uri)
        monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 500)
        again = take_snapshot(uri, str(tmp_path / "s"), f"{number}-computed", options(computed, asked))
        monkeypatch.undo()
        assert product_table(again.uri).select(table.column_names).equals(table)
    stock = [product_table(str(tmp_path / "s" / str(n)))["in_stock"].to_pylist() for n in range(4)]
    assert stock == [stock[0]] * 4
    assert len(set(found.values())) == 1


def test_a_killed_copy_does_not_go_on_with_other_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.catalog.sources import open_source

    uri = database(tmp_path / "a.db")
    monkeypatch.setattr(sqlite, "BATCH_ROWS", 8)
    with open_source(uri, options()) as one, open_source(uri, options(COLUMNS + "brand = 'dept'")) as other:
        assert one.moment != other.moment
        assert [i for b in one.products("1037") for i in b["product_id"].to_pylist()] == ["1038", "1039"]


def test_rows_that_cannot_be_computed_are_set_aside(tmp_path: Path) -> None:
    rows = [
        {"product_id": "a", "title": "A", "key1": "1", "cents": "abc"}, {"product_id": "b", "title": "B", "key1": "", "cents": "5"},
        {"product_id": "c", "title": "C", "key1": "3", "cents": ""},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "products.parquet")
    mapping = options('image = "{key1}.jpg"\nprice = "cents / 100"')
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "s", mapping)
    assert [r["sentence"] for r in unusable_rows(taken.uri)] == [
        "product 'a': price: cents: 'abc' is not a number", "product 'b': image: is empty; every product needs one",
    ]  # fmt: skip
    assert product_table(taken.uri)["price"].to_pylist() == [None]


def test_a_file_that_is_sent_is_read_alike(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("sku;name;eur\nx1;Boot;12,50\n")
    columns = 'product_id = "sku"\ntitle = "name"\nimage = "{sku}.jpg"\nprice = "eur * 2"'
    chosen = SourceOptions(columns=ColumnMapping.parse(columns), csv=folder.CsvFormat.parse("decimal=comma"))
    (event,) = events_of_file(tmp_path / "some.csv", datetime(2026, 12, 1, tzinfo=UTC), chosen)
    assert (event.product_id, event.product["title"], event.product["image_uri"], event.product["price"]) == (
        "x1", "Boot", "x1.jpg", 25.0,
    )  # fmt: skip


def test_the_setting_is_toml_an_inline_table_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "columns.toml").write_text('title = "name"', encoding="utf-8")
    texts = ['title = "name"', '{title = "name"}', str(tmp_path / "columns.toml")]
    assert len({ColumnMapping.parse(text) for text in texts}) == 1
    assert not ColumnMapping.parse("")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: name", "not TOML such as"),
        ("nowhere/columns.toml", "the file cannot be read"),
        ('price = "cents /"', "price: 'cents /': a column, a number or a text is expected at its end"),
        ('title = ["a", "b"]', "title: a list of columns makes a list of names"),
        ("title = []", "title: expected a text such as"),
        ("title = {a = 1}", "title: expected a text such as"),
        ('image = "{key.jpg"', "image: '{key.jpg': a brace is not closed"),
        ('image = "https://cdn.example/{key/{size}.jpg"', "a brace is not closed"),
        ('image = "{key}/x}y"', "a brace is not closed"),
        (f"price = 1{'0' * 400}", "price: a number of too many digits"),
        (f'price = "{"a+" * 300}a"', "price: an expression of 300 operators; at most 200"),
        ('image = "a"\nimage_uri = "b"', "given twice"),
    ],
)
def test_a_mistake_in_the_setting_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        ColumnMapping.parse(text)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ('title = "name"', "title: there is no column name; found product_id, image, tags"),
        ('title = "tags * 2"', "title: the column tags is of the type list"),
        ('title = "{tags}"', "title: the column tags is of the type list"),
        ("brand = 'image'", "the column title, image is missing; found brand, product_id, tags"),
    ],
)
def test_a_mistake_about_the_table_is_one_sentence(tmp_path: Path, columns: str, says: str) -> None:
    pq.write_table(pa.table({"product_id": ["a"], "image": ["a.jpg"], "tags": [["x"]]}), tmp_path / "products.parquet")
    with pytest.raises(CatalogError, match=says):
        take_snapshot(str(tmp_path), str(tmp_path / "s"), "s", options(columns))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("DELETE FROM products", "it begins with 'DELETE'; a SELECT is expected"),
        ("SELECT 1; DROP TABLE products", "more than one statement"),
        ("SELECT 1) AS a UNION SELECT (2", "a parenthesis is closed that was not opened"),
        ("SELECT 'open", "is not closed"),
    ],
)
def test_what_is_not_one_select_is_refused(query: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        one_select(query)


def test_semicolons_in_texts_and_comments_are_none() -> None:
    kept = "SELECT ';' AS \"a;b\", $x$;$x$ /* ; */ FROM t -- ;"
    assert one_select(kept) == kept
    assert one_select(" WITH t AS (SELECT 1) SELECT * FROM t; -- done\n") == "WITH t AS (SELECT 1) SELECT * FROM t"


def test_a_query_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    uri = database(tmp_path / "a.db")
    for query in ("SELECT no_such FROM products", "SELECT * FROM nowhere"):
        with pytest.raises(CatalogError, match=r"VITRINE_CATALOG_QUERY cannot be run: .*no such"):
            take_snapshot(uri, str(tmp_path / "s"), "s", options(COLUMNS, query))
    with pytest.raises(CatalogError, match=r"VITRINE_CATALOG_QUERY cannot be run: .*malformed JSON"):
        take_snapshot(
            uri, str(tmp_path / "s"), "s", SourceOptions(query="SELECT json_extract('{', '$') AS product_id FROM products")
        )
    with pytest.raises(SettingsError, match="VITRINE_CATALOG_QUERY is for SQLite and PostgreSQL"):
        take_snapshot(str(tmp_path), str(tmp_path / "s"), "s", options("", "SELECT 1"))


def test_long_expressions_have_a_stamp_and_a_number_is_the_text_that_was_written() -> None:
    long = options(f'price = "{"a+" * 200}a"\ncurrency = 978\nbrand = 4711')
    assert long.stamp
    found = long.columns.apply(pa.RecordBatch.from_pydict({"a": [1.0]}), "here").to_pylist()[0]
    assert (found["price"], found["currency"], found["brand"]) == (201.0, "978", "4711")


def test_a_column_that_occurs_twice_is_one_sentence() -> None:
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(CatalogError, match="here: the column a occurs more than once"):
        options('title = "a"').columns.apply(twice, "here")
