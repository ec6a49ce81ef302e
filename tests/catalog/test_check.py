"""`vitrine catalog check` on a good catalogue and on some that are wrong in different ways, as a person reads it."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.check import CatalogCheck, check_catalog
from tasks.settings import Settings
from tests.catalogs import read_table, small_catalog, write_table
from tests.cli.conftest import run


def check(catalogue: str | Path, rows: int = 20_000, **settings: object) -> CatalogCheck:
    chosen = replace(Settings(), catalog=str(catalogue), **settings)  # type: ignore[arg-type]
    return check_catalog(chosen, str(catalogue), rows)


def taken(found: CatalogCheck) -> dict[str, str]:
    return {use.column: use.taken_as for use in found.columns if use.column}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return small_catalog(tmp_path / "shop", products=12, photos=1)


def rewritten(shop: Path, change: object) -> Path:
    rows = [change(n, row) for n, row in enumerate(read_table(shop / "products.csv"))]  # type: ignore[operator]
    write_table(shop / "products.csv", rows)
    return shop


def test_a_good_catalogue_is_good(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(shop)
    assert found.ok
    assert (found.rows, found.whole, found.set_aside, found.pictures.reached, found.labelled_photos) == (12, True, 0, 12, 12)
    assert taken(found)["image"] == "image"
    assert [use.taken_as for use in found.columns if use.missing] == ["description", "popularity", "priority", "updated_at"]
    monkeypatch.setenv("COLUMNS", "80")
    code, output = run("catalog", "check", str(shop))
    assert code == 0
    assert output.strip().endswith("this catalogue can be used as it is")
    assert max(map(len, output.splitlines())) <= 80
    code, output = run("catalog", "check", str(shop), "--json")
    assert (code, json.loads(output)["ok"]) == (0, True)


def test_columns_of_other_names_are_named_with_the_way_out(shop: Path) -> None:
    def change(_: int, row: dict) -> dict:
        return {"sku" if k == "product_id" else k: v for k, v in row.items()}

    found = check(rewritten(shop, change))
    assert not found.ok
    assert [use.taken_as for use in found.columns if use.needed] == ["product_id"]
    assert "the column product_id is missing; found sku" in found.wrong[0]
    assert "VITRINE_CATALOG_COLUMNS" in found.wrong[1]
    mapped = check(shop, catalog_columns='{product_id = "sku", margin = "price * 2", brand = ""}')
    assert mapped.ok
    assert taken(mapped)["sku"] == "product_id"
    assert [(u.taken_as, u.why) for u in mapped.columns if not u.column and not u.missing] == [
        ("margin", "the shop's own: filters, collapse, computed: price * 2"),
    ]  # fmt: skip
    assert next(u.why for u in mapped.columns if u.column == "brand") == "VITRINE_CATALOG_COLUMNS leaves it out"


def test_rows_that_would_be_set_aside_are_counted_by_reason(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(n: int, row: dict) -> dict:
        return row | {"price": f"{n} EUR" if n % 3 == 0 else "5", "title": "" if n == 1 else "T"}

    found = check(rewritten(shop, change))
    assert [(r.column, r.problem, r.count, r.products) for r in found.reasons] == [
        ("price", "'0 EUR' is not a number", 4, ["p000", "p003", "p006"]),
        ("title", "is empty; every product needs one", 1, ["p001"]),
    ]  # fmt: skip
    assert found.wrong == ["5 of 12 rows would be set aside; at most 2 % may be: VITRINE_MOST_QUARANTINED"]
    monkeypatch.setenv("COLUMNS", "80")
    code, output = run("catalog", "check", str(shop))
    assert code == 1
    assert "  4 x price: '0 EUR' is not a number (product p000, p003, p006, …)" in output


def test_pictures_that_cannot_be_reached_are_counted_by_reason(shop: Path) -> None:
    (shop / "images/2.jpg").write_text("<html>")
    (shop / "images/3.jpg").unlink()
    (shop / "images/4.jpg").unlink()
    places = {0: "https://cdn.example/0.jpg", 1: "../../etc/passwd"}
    found = check(rewritten(shop, lambda n, row: row | {"image": places.get(n, row["image"])}))
    assert found.pictures is not None
    assert (found.pictures.reached, found.pictures.tried) == (7, 12)
    kinds = {r.problem.split(":", 1)[1].strip().split(";")[0][:30]: r.count for r in found.pictures.reasons}
    assert sorted(kinds.values()) == [1, 1, 1, 2]
    assert found.wrong[0].startswith("5 of 12 pictures cannot be reached or are none")


def test_ids_that_occur_twice_and_lines_that_are_none(shop: Path) -> None:
    with (shop / "products.csv").open("a") as stream:
        stream.write(f"{(shop / 'products.csv').read_text().splitlines()[1]}\nx,y,z\n")
    found = check(shop)
    assert found.wrong[0] == "1 ids occur more than once, the first is 'p000'; product_id must be unique"
    assert found.reasons[0].problem == "row 15: 3 fields where the header has 8"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "there is no such catalogue folder"),
        ("delta:nowhere", "there is no Delta table"),
        ("sqlite:///nowhere.db", "there is no such database"),
    ],
)
def test_no_catalogue_at_all_is_one_sentence(tmp_path: Path, name: str, says: str) -> None:
    (sentence,) = check(name).wrong
    assert says in sentence


def test_every_source_can_be_looked_at(tmp_path: Path) -> None:
    rows = {
        "product_id": ["a", "b", "c"],
        "title": ["T"] * 3,
        "image": ["a.jpg"] * 3,
        "blob": pa.array([b"x"] * 3),
        "n": [1, 2, 3],
    }
    pq.write_table(pa.table(rows), tmp_path / "products.parquet")
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("CREATE TABLE products (product_id text, title text, image text, blob blob, n integer)")
        database.executemany("INSERT INTO products VALUES (?, 'T', 'a.jpg', x'00', 1)", [(i,) for i in "abc"])
    for address in (tmp_path, f"parquet:{tmp_path}/products.parquet", f"sqlite:///{tmp_path}/shop.db"):
        found = check(address, rows=2)
        assert (found.rows, found.whole) == (2, False)
        assert {k: taken(found)[k] for k in ("blob", "n", "image")} == {"blob": "", "n": "n", "image": "image"}
        assert found.pictures is not None
        assert found.pictures.reasons[0].count == 2


def test_several_pictures_of_a_product_are_counted_and_tried(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rows = [{"product_id": f"p{n:03d}", "image": f"images/{(n + 1) % 12}.jpg", "position": 1} for n in range(0, 12, 2)]
    rows += [{"product_id": "p000", "image": f"images/lost-{n}.jpg", "position": 5 + n} for n in range(20)]
    write_table(shop / "images.csv", rows)
    found = check(shop, max_pictures=4, most_quarantined=0.5)
    assert found.ok
    looked = found.pictures
    assert looked is not None
    assert (looked.total, looked.least, looked.most, looked.left_out) == (12 + 6 + 2, 1, 4, 18)
    assert (looked.tried, looked.reached) == (20, 18)
    assert looked.reasons[0].products == ["p000", "p000"]
    assert taken(found)["product_images"] == "images"
    rewritten(shop, lambda _, row: {k: v for k, v in row.items() if k != "image"})
    found = check(shop, most_quarantined=0.99)
    assert not [use for use in found.columns if use.needed]
    assert found.set_aside == 6, "those without a row of their own have no picture"
    _, output = run("catalog", "check", str(shop))
    assert "pictures of a product: 1 to 16, 21 in all" in output
    assert "pictures left out: 5" in output


def test_products_without_a_picture_are_counted_and_it_says_what_becomes_of_them(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(shop, lambda n, row: row | {"image": "" if n in (2, 5) else row["image"]})
    found = check(shop, most_quarantined=0.5)
    assert (found.title_only, found.text_only, found.set_aside, found.pictures.total) == (2, False, 2, 10)  # type: ignore[union-attr]
    found = check(shop, text_only=True)
    assert found.ok
    assert (found.title_only, found.text_only, found.set_aside) == (2, True, 0)
    assert (found.pictures.reached, found.pictures.tried, found.pictures.total) == (10, 10, 10)  # type: ignore[union-attr]
    for chosen, says in (("false", "they are set aside; with"), ("true", "they are found by words alone")):
        monkeypatch.setenv("VITRINE_TEXT_ONLY", chosen)
        monkeypatch.setenv("COLUMNS", "200")
        assert f"products without any picture: 2; {says}" in run("catalog", "check", str(shop))[1]
