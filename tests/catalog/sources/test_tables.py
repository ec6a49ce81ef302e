"""Parquet, Delta Lake and Iceberg tables: the same products as any other source, of one version, on local disk and s3://."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from tasks.catalog.load import load_folder
from tasks.catalog.snapshot import Snapshot, photo_table, product_table, take_snapshot
from tasks.catalog.sources import SourceOptions, open_source
from tasks.errors import CatalogError, CatalogMissing
from tests.servers import postgres_server, s3_server

ROWS = 400


def products(rows: int = ROWS) -> pa.Table:
    """In no order of ids, and without values that a text file could not carry."""
    order = np.random.default_rng(3).permutation(rows)
    return pa.table({
        "product_id": [f"p{n:05d}" for n in order], "title": [f"Thing {n}" for n in order], "brand": [f"b{n % 7}" for n in order],
        "category": [f"kind {n % 3} > leaf {n % 11}" for n in order], "price": [n / 4 for n in order],
        "in_stock": [bool(n % 5) for n in order], "colour": [f"c{n % 4}" for n in order],
        "image": [f"https://cdn.example/{n}.jpg" for n in order],
        "updated_at": pa.array([f"2026-11-{n % 28 + 1:02d} 12:00:00" for n in order]),
    })  # fmt: skip


def iceberg_catalog(folder: Path, warehouse: str = "", **properties: str) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("shop", uri=f"sqlite:///{folder}/catalog.db", warehouse=warehouse or f"file://{folder}/wh", **properties)
    catalog.create_namespace("ns")
    return catalog


def make_iceberg(catalog: Any, table: pa.Table) -> Any:
    made = catalog.create_table("ns.products", schema=table.schema)
    half = len(table) // 2
    made.append(table.slice(0, half))
    made.append(table.slice(half))
    return made


def snap(address: str, folder: Path, name: str) -> Snapshot:
    return take_snapshot(address, str(folder / "snapshots"), name)


@pytest.mark.slow
def test_every_source_with_the_same_products_gives_the_same_hash(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    check_same_hash(tmp_path, products(), write_deltalake)


def check_same_hash(tmp_path: Path, table: pa.Table, write_deltalake: Any) -> None:
    folder, parquet = tmp_path / "shop" / "csv", tmp_path / "parquet"
    folder.mkdir(parents=True)
    (parquet / "sub").mkdir(parents=True)
    pacsv.write_csv(table, folder / "products.csv")
    third = len(table) // 3
    pq.write_table(table.slice(0, third), parquet / "a.parquet")
    pq.write_table(table.slice(third), parquet / "sub" / "b.parquet", row_group_size=64)
    write_deltalake(str(tmp_path / "delta"), table.slice(0, third))
    write_deltalake(str(tmp_path / "delta"), table.slice(third), mode="append")
    catalog = iceberg_catalog(tmp_path)
    make_iceberg(catalog, table)
    load_folder(folder, f"sqlite:///{tmp_path}/shop/shop.db")
    with postgres_server() as server:
        load_folder(folder, server)
        addresses = {
            "csv": str(folder), "parquet": f"parquet:{parquet}", "delta": f"delta:{tmp_path}/delta",
            "iceberg": f"iceberg:{tmp_path}/wh/ns/products", "postgresql": server,
            "sqlite": f"sqlite:///{tmp_path}/shop/shop.db",
        }  # fmt: skip
        found = {name: snap(address, tmp_path, name) for name, address in addresses.items()}
    catalog.close()
    assert {s.rows for s in found.values()} == {len(table)}
    assert len({s.content_sha256 for s in found.values()}) == 1, found


def test_a_tables_version_is_its_moment_and_an_older_one_can_be_named(tmp_path: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    address = f"delta:{tmp_path}/t"
    write_deltalake(f"{tmp_path}/t", products(10))
    with open_source(address) as source:
        first, again = source.moment, f"{DeltaTable(f'{tmp_path}/t').metadata().id} version 0"
        write_deltalake(f"{tmp_path}/t", products(20), mode="overwrite")
        assert sum(b.num_rows for b in source.products()) == 10, "what is written later is not in it"
    with open_source(address) as source:
        assert (first, source.moment[-9:]) == (again, "version 1")
        assert [b["product_id"][0].as_py() for b in source.products("p00018")] == ["p00019"]
    with open_source(f"{address}?version=0&image_root=s3://pictures/a") as source:
        assert (source.moment, source.image_root) == (first, "s3://pictures/a")
        assert sum(b.num_rows for b in source.products()) == 10


def test_rows_deleted_by_a_deletion_vector_are_not_read(tmp_path: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(f"{tmp_path}/t", products(10), configuration={"delta.enableDeletionVectors": "true"})
    DeltaTable(f"{tmp_path}/t").delete("product_id = 'p00003'")
    with open_source(f"delta:{tmp_path}/t") as source:
        ids = [i for b in source.products() for i in b["product_id"].to_pylist()]
    assert ids == sorted(set(products(10)["product_id"].to_pylist()) - {"p00003"})


def test_an_iceberg_snapshot_is_its_moment_with_and_without_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = iceberg_catalog(tmp_path)
    table = make_iceberg(catalog, products(10))
    first, second = (s.snapshot_id for s in table.snapshots())
    monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__WAREHOUSE", f"file://{tmp_path}/wh")
    import pyiceberg.catalog

    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", pyiceberg.catalog.Config())
    for address in (f"iceberg:{tmp_path}/wh/ns/products", "iceberg:shop/ns.products", f"iceberg:{table.metadata_location}"):
        with open_source(address) as source:
            assert source.moment == f"{table.metadata.table_uuid} snapshot {second}"
            assert sum(b.num_rows for b in source.products()) == 10
            assert source.image_root == f"{tmp_path}/wh/ns/products"
            del source
    with open_source(f"iceberg:{tmp_path}/wh/ns/products?snapshot={first}") as source:
        assert sum(b.num_rows for b in source.products()) == 5
    catalog.close()


def test_files_of_one_folder_may_differ_in_columns_and_partitions_are_columns(tmp_path: Path) -> None:
    for brand, extra in (
        ("b1", {"size": pa.array([1, 2], pa.int32())}),
        ("b2", {"size": pa.array([3, 4], pa.int64())}),
        ("b3", {}),
    ):
        (tmp_path / f"brand={brand}").mkdir()
        rows = {"product_id": [f"{brand}-1", f"{brand}-0"], "title": ["T", "T"], "image": ["a.jpg", "b.jpg"]}
        pq.write_table(pa.table(rows | extra), tmp_path / f"brand={brand}" / "x.parquet")
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "x.parquet").write_text("not one")
    rows = product_table(snap(f"parquet:{tmp_path}", tmp_path.parent, "s").uri).to_pylist()
    assert [(r["product_id"], r["brand"], r["size"]) for r in rows] == [
        ("b1-0", "b1", 2), ("b1-1", "b1", 1), ("b2-0", "b2", 4), ("b2-1", "b2", 3), ("b3-0", "b3", None), ("b3-1", "b3", None),
    ]  # fmt: skip


def test_labelled_photos_are_a_table_beside(tmp_path: Path) -> None:
    pq.write_table(products(10), tmp_path / "products.parquet")
    pq.write_table(pa.table({"photo": ["x.jpg"], "product_id": ["p00001"], "split": ["val"]}), tmp_path / "photos.parquet")
    taken = snap(f"parquet:{tmp_path}/products.parquet?photos={tmp_path}/photos.parquet", tmp_path, "s")
    assert (taken.rows, taken.photos, taken.image_root) == (10, 1, str(tmp_path))
    assert photo_table(taken.uri)["photo_uri"].to_pylist() == ["x.jpg"]


def test_preconditions_read_only_the_first_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.validate import rows

    monkeypatch.setattr(rows, "DATABASE_ROWS", 5)
    pq.write_table(products(50), tmp_path / "products.parquet")
    with rows.open_tables(f"parquet:{tmp_path}/products.parquet") as tables:
        assert not tables.products.whole
        assert [row["product_id"] for _, row in tables.products.rows()] == products(50)["product_id"].to_pylist()[:5]
        assert tables.photos is None


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.mark.slow
def test_tables_on_s3(tmp_path: Path, s3: str) -> None:
    from deltalake import write_deltalake

    from tasks import storage

    table = products(50)
    with storage.writer("s3://shop/parquet/a.parquet") as stream:
        pq.write_table(table, stream)
    options = {"AWS_ENDPOINT_URL": s3, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    write_deltalake("s3://shop/delta", table, storage_options=options)
    properties = {"s3.endpoint": s3, "s3.access-key-id": "test", "s3.secret-access-key": "test", "s3.region": "us-east-1"}
    catalog = iceberg_catalog(tmp_path, "s3://shop/wh", **properties)
    make_iceberg(catalog, table)
    places = ("parquet:s3://shop/parquet", "delta:s3://shop/delta", "iceberg:s3://shop/wh/ns/products")
    found = [snap(place, tmp_path, str(n)) for n, place in enumerate(places)]
    catalog.close()
    assert len({s.content_sha256 for s in found}) == 1
    assert [s.image_root for s in found] == [p.partition(":")[2] for p in places]


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("parquet:{0}/nowhere", CatalogMissing, "there is no Parquet file"),
        ("delta:{0}/nowhere", CatalogMissing, "there is no Delta table"),
        ("iceberg:{0}/nowhere", CatalogMissing, "there is no Iceberg table"),
        ("iceberg:shop", CatalogError, "expected iceberg:<catalog>/<namespace>.<table>"),
        ("iceberg:nowhere/ns.t", CatalogError, "the table cannot be read"),
        ("delta:{0}?versoin=3", CatalogError, "there is no parameter versoin"),
        ("delta:{0}?version=x", CatalogError, "version 'x' is not a number"),
        ("parquet:{0}/bad", CatalogError, "not a readable Parquet file"),
        ("parquet:{0}/mixed", CatalogError, "the table cannot be read: .*price"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, address: str, error: type[Exception], says: str) -> None:
    for name in ("bad", "mixed"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.parquet").write_text("text")
    for n, value in enumerate(("dear", [1.0])):
        pq.write_table(pa.table({"product_id": ["a"], "price": [value]}), tmp_path / "mixed" / f"{n}.parquet")
    with pytest.raises(error, match=says), open_source(address.format(tmp_path), SourceOptions()) as source:
        list(source.products())


def test_a_delta_table_with_renamed_columns_is_refused_rather_than_read_as_missing_values(tmp_path: Path) -> None:
    pytest.importorskip("deltalake")
    (tmp_path / "_delta_log").mkdir()
    pq.write_table(pa.table({"col-1": ["p1"]}), tmp_path / "a.parquet")
    column = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}
    schema = {"type": "struct", "fields": [{"name": "product_id", "type": "string", "nullable": True, "metadata": column}]}
    actions = [
        {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}},
        {"metaData": {
            "id": "x", "format": {"provider": "parquet", "options": {}}, "schemaString": json.dumps(schema), "partitionColumns": [],
            "configuration": {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"}, "createdTime": 1,
        }},
        {"add": {
            "path": "a.parquet", "partitionValues": {}, "size": (tmp_path / "a.parquet").stat().st_size, "modificationTime": 1,
            "dataChange": True,
        }},
    ]  # fmt: skip
    (tmp_path / "_delta_log" / f"{0:020}.json").write_text("\n".join(map(json.dumps, actions)))
    with (
        pytest.raises(CatalogError, match=r"other names in its files \(delta\.columnMapping\.mode = name\)"),
        open_source(f"delta:{tmp_path}"),
    ):
        pass
