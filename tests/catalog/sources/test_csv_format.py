"""CSV files as spreadsheets and shops write them."""

from pathlib import Path

import pytest

from tasks.catalog.snapshot import product_table, take_snapshot, unusable_rows
from tasks.catalog.sources import SourceOptions
from tasks.catalog.sources.csv_format import CsvFormat
from tasks.errors import CatalogError, SettingsError

TEXT = 'product_id,title,image,price\n007,Größe,a.jpg,12.50\n00042,"Two\nlines, and a comma",b.jpg,3\n'


@pytest.mark.parametrize(
    ("data", "stated"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode("utf-8-sig"), ""),
        (TEXT.encode("utf-16"), ""),
        (TEXT.replace("\n", "\r\n").encode(), ""),
        (TEXT.encode("cp1252"), "encoding=cp1252"),
        (TEXT.encode("utf-16-le"), "encoding=utf-16-le"),
        (TEXT.replace(",", ";").replace("lines;", "lines,").encode(), ""),
        (TEXT.replace(",", "\t").replace("lines\t", "lines,").encode(), ""),
        (TEXT.replace(",", ";").replace("lines;", "lines,").replace("12.50", "12,50").encode(), "decimal=comma"),
        (TEXT.replace(",", "|").replace("lines|", "lines,").encode(), "delimiter=pipe"),
        (TEXT.replace("title", '"title"').encode(), ""),
    ],
)
def test_the_same_rows_are_read_however_they_are_written(data: bytes, stated: str, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_bytes(data)
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one", options=SourceOptions(CsvFormat.parse(stated)))
    table = product_table(taken.uri)
    assert table["product_id"].to_pylist() == ["00042", "007"]
    assert [t.replace("\r", "") for t in table["title"].to_pylist()] == ["Two\nlines, and a comma", "Größe"]
    assert table["price"].to_pylist() == [3.0, 12.5]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"one column\nx\n", "holds one column"),
        ("Größe,title\n".encode("cp1252"), "header is not UTF-8"),
        (TEXT.encode("utf-16-le"), "NUL bytes"),
        (b"product_id,title,title,image\na,A,B,a.jpg\n", "title occurs more than once"),
        (b"id,title,image\na,A,a.jpg\n", "the column product_id is missing; found id"),
    ],
)
def test_what_concerns_the_whole_file_is_one_sentence(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_bytes(data)
    with pytest.raises(CatalogError, match=says) as error:
        take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_used_are_set_aside_one_by_one(tmp_path: Path) -> None:
    rows = [
        b"good,A,a.jpg,1", b"latin,M\xfcller,a.jpg,1", b"short,A", b"long,A,a.jpg,1,2,3", b"nul,A\x00B,a.jpg,1", b"cheap,A,a.jpg,cheap",
        b",A,a.jpg,1", b"large," + b"T" + b",a.jpg,1", b"huge,A,a.jpg," + b"9" * 400,
    ]  # fmt: skip
    (tmp_path / "products.csv").write_bytes(b"product_id,title,image,price\n" + b"\n".join(rows) + b"\n")
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert product_table(taken.uri)["product_id"].to_pylist() == ["good", "large"]
    found = {row["product_id"] or row["column"] or row["problem"][:5] for row in unusable_rows(taken.uri)}
    assert found == {"latin", "nul", "cheap", "product_id", "huge", "row 4", "row 5"}
    assert taken.quarantined_rows == 7


def test_a_long_description_is_read_and_an_endless_one_set_aside(tmp_path: Path) -> None:
    rows = "".join(f"p{n},T,a.jpg,{'x' * (900_000 if n == 5 else 3_000_000 if n == 6 else 9)}\n" for n in range(10))
    (tmp_path / "products.csv").write_text("product_id,title,image,description\n" + rows)
    taken = take_snapshot(str(tmp_path), str(tmp_path / "s"), "one")
    assert (taken.rows, taken.quarantined_rows) == (9, 1)
    assert unusable_rows(taken.uri)[0]["product_id"] == "p6"


@pytest.mark.parametrize("text", ["delimiter=x", "encoding=klingon", "decimal=point comma", "separator=comma"])
def test_a_format_that_makes_no_sense_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match="VITRINE_CATALOG_CSV"):
        CsvFormat.parse(text)
