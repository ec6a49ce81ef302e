"""What a comparison has seen of each product, in a database beside its outbox: table `seen`, and `seen_notes` for single values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.catalog.changes.event import format_time
from tasks.catalog.changes.outbox_database import Database, Postgres, as_text
from tasks.catalog.sources.database import sql_literal

AT_ONCE = 50_000
NAMED = 500
"""Ids in one statement."""


@dataclass(frozen=True)
class SeenProduct:
    """A product as it was last seen: a hash of its content ("": it is gone), and the time of the last change that was told of it."""

    product_id: str
    digest: str
    at: datetime


class Seen:
    """Products by id, in order of bytes. Reads and writes within the database's transaction where one is open."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def make_tables(self) -> None:
        collation = ' COLLATE "C"' if isinstance(self.database, Postgres) else ""
        if not (self.database.exists("seen") and self.database.exists("seen_notes")):
            with self.database.transaction():
                self.database.execute(
                    f"CREATE TABLE IF NOT EXISTS seen (product_id TEXT{collation} PRIMARY KEY, digest TEXT NOT NULL, at TEXT NOT NULL)"
                )
                self.database.execute("CREATE TABLE IF NOT EXISTS seen_notes (name TEXT PRIMARY KEY, note TEXT NOT NULL)")

    def note(self, name: str) -> str:
        """A value that was set; "" where none was."""
        rows = self.database.fetch(f"SELECT note FROM seen_notes WHERE name = {sql_literal(name)}")
        return as_text(rows[0][0]) if rows else ""

    def set_note(self, name: str, note: str) -> None:
        self.database.execute(f"DELETE FROM seen_notes WHERE name = {sql_literal(name)}")
        self.database.execute("INSERT INTO seen_notes (name, note) VALUES ({}, {})", [(name, note)])

    def count(self) -> int:
        """Number of products that are there."""
        return int(self.database.fetch("SELECT count(*) FROM seen WHERE digest <> ''")[0][0])

    def between(self, after: str, last: str) -> dict[str, SeenProduct]:
        """The products whose id is greater than `after` and at most `last`."""
        return self._read(f"product_id > {sql_literal(after)} AND product_id <= {sql_literal(last)}")

    def beyond(self, after: str) -> Iterator[dict[str, SeenProduct]]:
        """The products whose id is greater than `after`, some at a time."""
        while found := self._read(f"product_id > {sql_literal(after)}", f" ORDER BY product_id LIMIT {AT_ONCE}"):
            yield found
            after = max(found)

    def of(self, ids: Sequence[str]) -> dict[str, SeenProduct]:
        """The products of these ids."""
        found: dict[str, SeenProduct] = {}
        for start in range(0, len(ids), NAMED):
            found |= self._read(f"product_id IN ({', '.join(map(sql_literal, ids[start : start + NAMED]))})")
        return found

    def write(self, products: Sequence[SeenProduct]) -> None:
        """Replaces what was seen of these products."""
        if products:
            self.database.execute("DELETE FROM seen WHERE product_id = {}", [(p.product_id,) for p in products])
            rows = [(p.product_id, p.digest, format_time(p.at)) for p in products]
            self.database.execute("INSERT INTO seen (product_id, digest, at) VALUES ({}, {}, {})", rows)

    def forget_before(self, at: datetime) -> None:
        """Removes what was last told before a time."""
        self.database.execute(f"DELETE FROM seen WHERE at < {sql_literal(format_time(at))}")

    def _read(self, where: str, more: str = "") -> dict[str, SeenProduct]:
        rows = self.database.fetch(f"SELECT product_id, digest, at FROM seen WHERE {where}{more}")
        texts = ((as_text(i), as_text(digest), as_text(at)) for i, digest, at in rows)
        return {i: SeenProduct(i, digest, datetime.fromisoformat(at)) for i, digest, at in texts}
