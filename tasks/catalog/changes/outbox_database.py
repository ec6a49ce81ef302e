"""The databases that an outbox may lie in: SQLite and PostgreSQL behind one protocol."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from serving.contract.addresses import error_line
from tasks.catalog.sources.postgresql import PLAIN_LITERALS, connect, lost_connection
from tasks.errors import CatalogAway, CatalogError

BUSY_S = 30.0
"""How long SQLite waits for another writer."""


class Database(Protocol):
    """The database operations that the outbox uses."""

    serial: str

    def exists(self, table: str) -> bool: ...
    def has_column(self, table: str, column: str) -> bool: ...
    def fetch(self, query: str) -> list[tuple[Any, ...]]: ...
    def transaction(self) -> Any: ...
    def execute(self, command: str, rows: Sequence[tuple[Any, ...]] | None = None) -> None: ...
    def close(self) -> None: ...


def as_text(value: Any) -> str:
    """A stored text; SQLite keeps in a column whatever a program wrote there."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


class Sqlite:
    """A SQLite file. Ids are never reused, so acknowledging twice cannot delete another event."""

    serial = "INTEGER PRIMARY KEY AUTOINCREMENT"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """Opened on first use, which creates a missing file."""
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._open.text_factory = as_text  # bytes that are not UTF-8 are for the parser to refuse
        return self._open

    def exists(self, table: str) -> bool:
        if self._open is None and not self.path.is_file():
            return False
        return bool(self.fetch(f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{table}'"))

    def has_column(self, table: str, column: str) -> bool:
        return bool(self.fetch(f"SELECT 1 FROM pragma_table_info('{table}') WHERE name = '{column}'"))

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self.connection.cursor()) as cursor:
            return cursor.execute(query).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
        except sqlite3.OperationalError as error:
            self._undo()
            raise CatalogError(f"the outbox cannot be written: {error}; the catalogue's database must be writable") from None
        except BaseException:
            self._undo()
            raise
        self.connection.execute("COMMIT")

    def _undo(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def execute(self, command: str, rows: Sequence[tuple[Any, ...]] | None = None) -> None:
        if rows is None:
            self.connection.execute(command)
        else:
            self.connection.executemany(command.format(*"???"), rows)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


class Postgres:
    """A PostgreSQL database over ADBC."""

    serial = "BIGSERIAL PRIMARY KEY"

    def __init__(self, uri: str) -> None:
        self.connection = connect(uri)
        self.execute(PLAIN_LITERALS)
        self.connection.commit()

    def exists(self, table: str) -> bool:
        return self.fetch(f"SELECT to_regclass('{table}')::text")[0][0] is not None

    def has_column(self, table: str, column: str) -> bool:
        query = (
            f"SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attname = '{column}' AND NOT attisdropped"
        )
        return bool(self.fetch(query))

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query)
            rows = cursor.fetchall()
        if not self.open_transaction:
            self.connection.rollback()  # a reader that stays in a transaction would not see what others commit
        return rows

    open_transaction = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        from adbc_driver_postgresql import dbapi

        self.open_transaction = True
        try:
            yield
        except dbapi.Error as error:
            with suppress(dbapi.Error):  # without a connection there is nothing to take back
                self.connection.rollback()
            failure = CatalogAway if lost_connection(error) else CatalogError
            raise failure(f"the outbox cannot be written: {error_line(error)}") from None
        except BaseException:
            self.connection.rollback()
            raise
        else:
            self.connection.commit()
        finally:
            self.open_transaction = False

    def execute(self, command: str, rows: Sequence[tuple[Any, ...]] | None = None) -> None:
        with self.connection.cursor() as cursor:
            if rows is None:
                cursor.execute(command)
            elif rows:
                cursor.executemany(command.format("$1", "$2", "$3"), list(rows))

    def close(self) -> None:
        self.connection.close()
