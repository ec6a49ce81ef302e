"""The outbox table beside `products`: a change and its event are committed in one transaction (transactional outbox)."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from serving.contract import addresses
from tasks.catalog.changes.event import Event, event_time, format_time
from tasks.catalog.changes.outbox_database import Database, Postgres, Sqlite, as_text
from tasks.catalog.changes.source import DeadLetter, Message, storable
from tasks.catalog.changes.touched import tell_some, touched_count, touched_since
from tasks.catalog.sources.sqlite import NO_DATABASE
from tasks.errors import CatalogError

POLL_S = 0.2
TABLES = {
    "outbox": "id {serial}, event TEXT NOT NULL, priority BOOLEAN NOT NULL DEFAULT FALSE",
    "outbox_dead": "id {serial}, event TEXT NOT NULL, reason TEXT NOT NULL, died_at TEXT",
}
ADDED = "ALTER TABLE outbox_dead ADD COLUMN died_at TEXT"
"""For tables that were made before there was such a column."""
AT_ONCE = 500


class Outbox:
    """Tables `outbox` (id, event, priority) and `outbox_dead` (id, event, reason, died_at). Acknowledged events are deleted.

    The tables are made by whoever writes first; reading makes nothing, and finds nothing where there are none.
    """

    ahead = 1  # the table itself gives priority products first

    def __init__(self, name: str, database: Database) -> None:
        self.name, self.database = name, database
        self.present: set[str] = set()

    @classmethod
    def open(cls, database_uri: str, existing: bool = False) -> "Outbox":
        """The outbox of a database. With `existing`, a SQLite file must exist already; otherwise the first write creates it.

        Raises CatalogError for a database that is not there or does not answer.
        """
        return cls(*open_database(database_uri, existing))

    def make_tables(self) -> None:
        """Creates missing tables."""
        for table, columns in TABLES.items():
            if not self._there(table):
                with self.database.transaction():
                    self.database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns.format(serial=self.database.serial)})")

    def _there(self, table: str) -> bool:
        if table not in self.present and self.database.exists(table):
            self.present.add(table)
        return table in self.present

    def send(self, events: Sequence[Event]) -> None:
        self.make_tables()
        with self.database.transaction():
            rows = [(e.text, e.priority) for e in events]
            self.database.execute("INSERT INTO outbox (event, priority) VALUES ({}, {})", rows)

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        until = time.monotonic() + wait_s
        while True:
            if touched_count(self.database):
                self.make_tables()
                tell_some(self.database)
            query = f"SELECT id, event FROM outbox ORDER BY priority DESC, id LIMIT {int(limit)}"
            rows = self.database.fetch(query) if self._there("outbox") else []
            if rows or time.monotonic() >= until:
                return [Message(as_text(event), str(number)) for number, event in rows]
            time.sleep(POLL_S)

    def extend(self, handles: Sequence[str], seconds: int) -> None:
        """No-op: a row stays until it is deleted."""

    def acknowledge(self, handles: Sequence[str]) -> None:
        if not self._there("outbox"):
            return
        with self.database.transaction():
            self._delete("outbox", handles)

    def release(self, handles: Sequence[str]) -> None:
        """No-op: rows are never hidden."""

    def dead_letter(self, messages: Sequence[tuple[Message, str]]) -> None:
        self.make_tables()
        if not self.database.has_column("outbox_dead", "died_at"):
            with self.database.transaction():
                self.database.execute(ADDED)
        with self.database.transaction():  # exactly once: into one table and out of the other together
            kept = {str(row[0]) for row in self._rows("outbox", [m.handle for m, _ in messages])}
            now = format_time(datetime.now(UTC))
            rows = [(storable(m.text), storable(reason), now) for m, reason in messages if m.handle in kept]
            self.database.execute("INSERT INTO outbox_dead (event, reason, died_at) VALUES ({}, {}, {})", rows)
            self._delete("outbox", [m.handle for m, _ in messages])

    def count_waiting(self) -> int:
        told = int(self.database.fetch("SELECT count(*) FROM outbox")[0][0]) if self._there("outbox") else 0
        return told + touched_count(self.database)

    def oldest_at(self) -> datetime | None:
        """The event's own time, as the table has no insertion time."""
        rows = self.database.fetch("SELECT event FROM outbox ORDER BY id LIMIT 1") if self._there("outbox") else []
        if rows:
            return event_time(as_text(rows[0][0]))
        since = touched_since(self.database)
        return None if since is None else datetime.fromtimestamp(since, UTC)

    def count_dead_letters(self) -> int:
        return int(self.database.fetch("SELECT count(*) FROM outbox_dead")[0][0]) if self._there("outbox_dead") else 0

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        if not self._there("outbox_dead"):
            return []
        died_at = "died_at" if self.database.has_column("outbox_dead", "died_at") else "NULL"
        query = f"SELECT event, reason, id, {died_at} FROM outbox_dead ORDER BY id DESC LIMIT {int(limit)}"
        return [
            DeadLetter(as_text(event), as_text(reason), str(number), datetime.fromisoformat(at) if at else None)
            for event, reason, number, at in self.database.fetch(query)
        ]

    def requeue(self) -> int:
        if not self._there("outbox_dead"):
            return 0
        self.make_tables()
        with self.database.transaction():
            count = self.count_dead_letters()
            self.database.execute("INSERT INTO outbox (event) SELECT event FROM outbox_dead ORDER BY id")
            self.database.execute("DELETE FROM outbox_dead")
        return count

    def close(self) -> None:
        self.database.close()

    def _rows(self, table: str, handles: Sequence[str]) -> list[tuple[Any, ...]]:
        found = []
        for numbers in _pieces(handles):
            found += self.database.fetch(f"SELECT id FROM {table} WHERE id IN ({numbers})")
        return found

    def _delete(self, table: str, handles: Sequence[str]) -> None:
        for numbers in _pieces(handles):
            self.database.execute(f"DELETE FROM {table} WHERE id IN ({numbers})")


def open_database(uri: str, existing: bool = False) -> tuple[str, Database]:
    """The name of the outbox in a database, and the database. Raises CatalogError as `Outbox.open` does."""
    if uri.startswith("sqlite:///"):
        path = addresses.sqlite_path(uri)
        if existing and not path.is_file():
            raise CatalogError(NO_DATABASE.format(uri=uri))
        return f"outbox in {path.name}", Sqlite(path)
    if uri.startswith(("postgresql://", "postgres://")):
        return "outbox in PostgreSQL", Postgres(uri)
    raise CatalogError(f"{addresses.without_secrets(uri)}: not a database for an outbox; give sqlite:///file or postgresql://…")


def _pieces(handles: Sequence[str]) -> Iterator[str]:
    numbers = [str(int(h)) for h in handles]
    for start in range(0, len(numbers), AT_ONCE):
        yield ", ".join(numbers[start : start + AT_ONCE])
