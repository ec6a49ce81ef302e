"""Where a catalogue is read from: SQLite, PostgreSQL, or a folder of CSV/Parquet. All of them as streams of Arrow batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tasks.errors import CatalogError, CatalogMissing

BATCH_ROWS = 50_000
NO_DATABASE = (
    "{uri}: there is no such database; name the catalogue with VITRINE_CATALOG, or make one with: vitrine catalog sample and "
    "vitrine catalog load"
)


class Source(Protocol):
    """One consistent view of a catalogue. Products come ordered by product_id; batches have at most about 64k rows.

    Two views of one catalogue with the same `moment` hold the same rows; "" promises nothing.
    """

    name: str
    image_root: str
    moment: str

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """All products, or those whose product_id comes after `after`."""
        ...

    def photos(self) -> Iterator[pa.RecordBatch]: ...


@contextmanager
def open_source(uri: str) -> Iterator[Source]:
    """The catalogue at `uri`: sqlite:///file, postgresql://…, or a folder with products.csv or products.parquet.

    Pictures' relative paths are relative to the folder, or to the SQLite file's folder; for PostgreSQL to the query
    parameter `image_root` of the uri (default: the working directory).
    """
    if uri.startswith("sqlite:///"):
        path = Path(uri[len("sqlite:///") :])
        if not path.is_file():
            raise CatalogMissing(NO_DATABASE.format(uri=uri))
        from adbc_driver_sqlite import dbapi

        with dbapi.connect(f"file:{path}?mode=ro") as connection:
            yield SqliteSource(uri, str(path.parent), connection, path)
    elif uri.startswith(("postgresql://", "postgres://")):
        from adbc_driver_postgresql import dbapi as postgres

        address, root = split_image_root(uri)
        try:
            connection = postgres.connect(address)
        except postgres.Error as error:
            raise CatalogError(f"PostgreSQL does not answer: {str(error).strip().splitlines()[-1]}") from None
        with connection:
            yield PostgresSource(address.rpartition("@")[2], root, connection)
    else:
        yield FolderSource(Path(uri.removeprefix("file://")))


def split_image_root(uri: str) -> tuple[str, str]:
    """A PostgreSQL uri without its `image_root` parameter, and that parameter (default ".")."""
    address, _, query = uri.partition("?")
    parts = [p for p in query.split("&") if p]
    root = next((p.partition("=")[2] for p in parts if p.startswith("image_root=")), ".")
    others = "&".join(p for p in parts if not p.startswith("image_root="))
    return (f"{address}?{others}" if others else address), root


class DatabaseSource(ABC):
    """Tables `products` and (optional) `photos`, read inside one read transaction of an ADBC connection."""

    moment = ""

    def __init__(self, name: str, image_root: str, connection: Any) -> None:
        self.name, self.image_root, self.connection = name, image_root, connection

    @abstractmethod
    def products(self, after: str = "") -> Iterator[pa.RecordBatch]: ...

    def photos(self) -> Iterator[pa.RecordBatch]:
        return self._read("SELECT * FROM photos", "photos")

    def _read(self, query: str, table: str, **options: str) -> Iterator[pa.RecordBatch]:
        with self.connection.cursor() as cursor:
            if options:
                cursor.adbc_statement.set_options(**options)
            try:
                cursor.execute(query)
                yield from cursor.fetch_record_batch()
            except Exception as error:  # each ADBC driver has its own error classes
                missing = "no such table" in str(error) or f'relation "{table}" does not exist' in str(error)
                if missing and table == "photos":
                    return
                if missing:
                    raise CatalogMissing(
                        f"{self.name}: there is no table {table} in it; make one with: vitrine catalog load"
                    ) from None
                raise CatalogError(f"{self.name}: cannot read the table {table}: {str(error).strip().splitlines()[0]}") from None


class SqliteSource(DatabaseSource):
    """A SQLite file. Its driver takes a column's type from the first batch, so a row that shows the types is put in front."""

    SHOWN = {"TEXT": "''", "CLOB": "''", "CHAR": "''", "REAL": "0.0", "FLOA": "0.0", "DOUB": "0.0", "INT": "0"}
    """What a declared type's name holds, and a value of it; the rest is left to the driver."""

    def __init__(self, name: str, image_root: str, connection: Any, file: Path) -> None:
        super().__init__(name, image_root, connection)
        before = _stamp(file)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_master")  # from here on the transaction sees one moment
            cursor.fetchone()
        self.moment = before if before == _stamp(file) else ""

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """Ordered by bytes, as SQLite compares text."""
        columns = self._columns("products")
        where = f" WHERE product_id > {_quoted(after)}" if after else ""
        if "product_id" not in columns:  # the caller says which columns there are
            yield from self._batches("SELECT * FROM products", "products")
            return
        shown = ", ".join("NULL" if name == "product_id" else value for name, value in columns.items())
        wanted = ", ".join(_as_real(n) if v == "0.0" else f'"{n}"' for n, v in columns.items())
        first = True
        for batch in self._batches(f"SELECT {shown} UNION ALL SELECT {wanted} FROM products{where} ORDER BY 1", "products"):
            yield batch.rename_columns(list(columns)).slice(1 if first else 0)
            first = False

    def _columns(self, table: str) -> dict[str, str]:
        """The columns of a table, product_id first, and a value that shows what type each holds."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT name, upper(type) FROM pragma_table_info('{table}')")
            found = dict(cursor.fetchall())
        first = {n: t for n, t in found.items() if n == "product_id"}
        types = first | {n: "REAL" if n in ("price", "popularity") else t for n, t in found.items()}
        return {n: next((v for word, v in self.SHOWN.items() if word in t), "NULL") for n, t in types.items()}

    def _batches(self, query: str, table: str) -> Iterator[pa.RecordBatch]:
        return self._read(query, table, **{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})


class PostgresSource(DatabaseSource):
    """A PostgreSQL database, streamed by COPY inside one repeatable-read transaction."""

    def __init__(self, name: str, image_root: str, connection: Any) -> None:
        super().__init__(name, image_root, connection)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with connection.cursor() as cursor:
            # The same xmin, xmax and running transactions: nothing was committed in between, in any database of the server.
            cursor.execute("SELECT pg_current_snapshot()::text")
            self.moment = str(cursor.fetchone()[0])

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """COLLATE "C" orders by bytes, as SQLite does: the same catalogue gives the same snapshot from either."""
        name = 'product_id::text COLLATE "C"'
        where = f" WHERE {name} > {_quoted(after)}" if after else ""
        return self._read(f"SELECT * FROM products{where} ORDER BY {name}", "products")


def _quoted(text: str) -> str:
    """A literal, since neither driver streams the answer of a query with parameters."""
    return "'" + text.replace("'", "''") + "'"


def _as_real(name: str) -> str:
    """Whole numbers as real ones; text stays text, so that a price that is no number is refused instead of read as 0."""
    return f'CASE typeof("{name}") WHEN \'integer\' THEN CAST("{name}" AS REAL) ELSE "{name}" END'


def _stamp(*files: Path) -> str:
    """Sizes and times of files (and of a database's write-ahead log): equal as long as nothing was written to them."""
    found = [p.stat() for f in files for p in (f, f.with_name(f.name + "-wal")) if p.is_file()]
    return " ".join(f"{s.st_ino}-{s.st_size}-{s.st_mtime_ns}" for s in found if s.st_size)  # a reader leaves an empty log


class FolderSource:
    """A folder with products.csv|parquet and, optionally, photos.csv|parquet."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CatalogMissing(f"{folder}: there is no such catalogue folder")
        self.folder, self.name, self.image_root = folder, str(folder), str(folder.resolve())
        self.moment = _stamp(*sorted(f for f in folder.iterdir() if f.suffix in (".csv", ".parquet")))

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        table = self._table("products")
        if table is None:
            raise CatalogMissing(f"{self.folder}: neither products.csv nor products.parquet is in the folder")
        if "product_id" in table.column_names:
            table = table.sort_by("product_id")
            if after:
                table = table.filter(
                    pc.greater(table["product_id"], pa.scalar(after).cast(table.schema.field("product_id").type))
                )
        yield from table.to_batches(max_chunksize=BATCH_ROWS)

    def photos(self) -> Iterator[pa.RecordBatch]:
        table = self._table("photos")
        if table is None:
            return
        if len(table) == 0:
            raise CatalogError(f"{self.folder}/photos.csv has no rows: remove the file, or name labelled photos in it")
        yield from table.to_batches(max_chunksize=BATCH_ROWS)

    def _table(self, name: str) -> pa.Table | None:
        parquet, csv = self.folder / f"{name}.parquet", self.folder / f"{name}.csv"
        if parquet.is_file():
            return pads.dataset(parquet).to_table() if parquet.stat().st_size else pq.read_table(parquet)
        if not csv.is_file():
            return None
        try:
            with csv.open() as stream:
                header = stream.readline().strip().replace('"', "").split(",")
            text = {n: pa.string() for n in header if n not in ("price", "popularity", "in_stock", "priority")}
            options = pacsv.ConvertOptions(column_types=text, strings_can_be_null=False)
            return pacsv.read_csv(csv, convert_options=options, parse_options=pacsv.ParseOptions(newlines_in_values=True))
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise CatalogError(f"{csv}: not a readable CSV file: {error}") from None
