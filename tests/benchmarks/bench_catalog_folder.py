"""Snapshots of large catalogue folders, CSV and Parquet: time and peak memory; and the same products from every kind of source.

    python -m tests.benchmarks.bench_catalog_folder [--rows 10000000] [--alike 5000] [--tables] [--out build/bench]

Ids are spread over the files, so that everything has to be sorted. Every copy runs in a process of its own; its peak is the largest
resident size it ever had. `--tables` adds Delta Lake and Iceberg tables of as many rows. `--alike` products (0: none) are copied
from every source first, and must give one content hash. Prints a table and writes catalog_folder.json.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tasks.catalog.snapshot import take_snapshot
from tests.benchmarks.peak import measured
from tests.catalog.sources.test_tables import check_same_hash, iceberg_catalog, products

BATCH = 100_000
NEEDED_BYTES_A_ROW = 1500
SCHEMA = pa.schema([
    ("product_id", pa.string()), ("title", pa.string()), ("description", pa.string()), ("brand", pa.string()),
    ("category", pa.string()), ("price", pa.float64()), ("currency", pa.string()), ("in_stock", pa.int64()),
    ("popularity", pa.float64()), ("image", pa.string()), ("updated_at", pa.string()),
])  # fmt: skip


def rows(count: int) -> Iterator[pa.RecordBatch]:
    """The products of bench_snapshot, in an order that is not that of their ids."""
    for start in range(0, count, BATCH):
        n = np.arange(start, min(start + BATCH, count))

        def text(*parts: str | np.ndarray) -> pa.Array:
            pieces = [pa.scalar(p) if isinstance(p, str) else pa.array(p).cast(pa.string()) for p in parts]
            return pc.binary_join_element_wise(*pieces, "")

        ids = pc.utf8_lpad(pa.array(n * 7919 % count).cast(pa.string()), 8, "0")
        yield pa.record_batch([
            pc.binary_join_element_wise("p", ids, ""), text("Product number ", n),
            text("A thing of kind ", n % 977, " that is described in about a hundred and twenty letters, as shops do, with a few words "
                 "that repeat ", n % 13), text("brand ", n % 5000),
            text("department ", n % 12, " > kind ", n % 977, " > leaf ", n % 20011), pa.array(n % 100000 / 100.0),
            text("EUR", np.full(len(n), "")), pa.array((n % 7 != 0).astype(np.int64)), pa.array(n % 1000 / 1000.0),
            text("images/", n % 1000, "/", n, ".jpg"), text("2026-11-01 12:00:00", np.full(len(n), "")),
        ], schema=SCHEMA)  # fmt: skip


def make_csv(folder: Path, count: int) -> str:
    with pacsv.CSVWriter(folder / "products.csv", SCHEMA) as writer:
        for batch in rows(count):
            writer.write_batch(batch)
    return str(folder)


def make_parquet(folder: Path, count: int) -> str:
    with pq.ParquetWriter(folder / "products.parquet", SCHEMA) as writer:
        for table in _large(count):
            writer.write_table(table, row_group_size=len(table))
    return str(folder)


def make_delta(folder: Path, count: int) -> str:
    from deltalake import write_deltalake

    for table in _large(count):
        write_deltalake(str(folder / "table"), table, mode="append")
    return f"delta:{folder}/table"


def make_iceberg(folder: Path, count: int) -> str:
    catalog = iceberg_catalog(folder)
    made = catalog.create_table("ns.products", schema=SCHEMA)
    for table in _large(count):
        made.append(table)
    catalog.close()
    return f"iceberg:{folder}/wh/ns/products"


def _large(count: int) -> Iterator[pa.Table]:
    """Row groups of a million rows, as other tools write them."""
    held: list[pa.RecordBatch] = []
    for batch in rows(count):
        held.append(batch)
        if len(held) == 10:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def copy(uri: str, folder: str) -> tuple[int, str]:
    taken = take_snapshot(uri, folder, "s")
    return taken.rows, taken.content_sha256


def case(name: str, make: Callable[[Path, int], str], count: int, folder: Path) -> dict[str, float | str | int]:
    place = folder / name
    place.mkdir()
    uri = measured(make, place, count).answer  # in another process: a child's peak begins with its parent's size
    size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    copied = measured(copy, uri, str(folder / "snapshots"))
    shutil.rmtree(folder / "snapshots")
    shutil.rmtree(place)
    if copied.answer[0] != count:
        raise ValueError(f"{count} rows were made and {copied.answer[0]} copied")
    return {
        "source": name, "rows": count, "mib": size / 2**20, "snapshot_s": copied.seconds, "snapshot_cpu_s": copied.cpu_s,
        "snapshot_peak_mib": copied.peak_mib, "content_sha256": copied.answer[1],
    }  # fmt: skip


def alike(count: int, folder: Path) -> None:
    from deltalake import write_deltalake

    check_same_hash(folder, products(count), write_deltalake)
    print(f"{count:,} products from CSV, Parquet, Delta Lake, Iceberg, SQLite and PostgreSQL: one content", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--alike", type=int, default=5000)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    makers = {"CSV": make_csv, "Parquet": make_parquet}
    makers |= {"Delta Lake": make_delta, "Iceberg": make_iceberg} if chosen.tables else {}
    with TemporaryDirectory() as name:
        needed, free = NEEDED_BYTES_A_ROW * chosen.rows, shutil.disk_usage(name).free
        if free < needed:
            raise SystemExit(f"{name}: {free / 2**30:.0f} GiB are free and {needed / 2**30:.0f} are needed; set TMPDIR")
        if chosen.alike:
            measured(alike, chosen.alike, Path(name) / "alike")
        found = []
        for source, make in makers.items():
            found.append(case(source, make, chosen.rows, Path(name)))
            print("{source:12} {rows:>10,} rows, {mib:6.0f} MiB   snapshot {snapshot_s:6.1f} s ({snapshot_cpu_s:.1f} s CPU) "
                  "{snapshot_peak_mib:5.0f} MiB".format(**found[-1]), flush=True)  # fmt: skip
    if len({row["content_sha256"] for row in found}) > 1:
        raise SystemExit("the same rows gave different contents")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "catalog_folder.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
