"""Changes of a database found by its column updated_at: rows later than a watermark that never passes now. It cannot see deletes."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.changes.comparison import TICK, Comparison, content_digests
from tasks.catalog.changes.event import format_time
from tasks.catalog.changes.seen import SeenProduct
from tasks.catalog.changes.sending import row_event
from tasks.catalog.schema import FIXED_COLUMNS, UPDATED_AT, read_products
from tasks.catalog.snapshot import started_at
from tasks.catalog.sources import Source, open_source
from tasks.catalog.sources.database import DatabaseSource
from tasks.errors import CatalogError

log = logging.getLogger(__name__)

LATE = timedelta(minutes=10)
"""How much later a transaction may commit than the updated_at that it writes: rows so shortly before the watermark are read again."""


class Watermark(Comparison):
    """An outbox that is filled with a database's rows whose updated_at is later than those seen."""

    @property
    def kind(self) -> str:
        return "rows by updated_at"

    def compare(self) -> int:
        """Puts the rows changed since the watermark into the outbox; returns how many. Rows of a time to come wait for it."""
        self.make_tables()
        self.seen.make_tables()
        now, begin = self.clock(), self._begin()
        total, newest = 0, begin
        with open_source(self.catalogue.uri, self.catalogue.options) as source, self.database.transaction():
            self.seen.forget_before(begin - LATE)
            for rows in self._changed(source, begin - LATE, now):
                ids = rows["product_id"].to_pylist()
                digests = content_digests(rows, [n for n in rows.column_names if n not in FIXED_COLUMNS])
                known = self.seen.of(ids)
                new = [n for n, i in enumerate(ids) if i not in known or known[i].digest != digests[n]]
                records = rows.take(pa.array(new, pa.int64())).to_pylist()
                events = [row_event(r, _told_at(r, known), self.catalogue.options.limits) for r in records]
                self.put(events)
                self.seen.write([SeenProduct(ids[n], digests[n], e.updated_at) for n, e in zip(new, events, strict=True)])
                total += len(events)
                newest = max(newest, pc.max(rows["updated_at"]).as_py())
            self.seen.set_note("watermark", format_time(newest))
        log.info("%s: %d changes found up to %s", self.name, total, format_time(newest))
        return total

    def _begin(self) -> datetime:
        """The watermark, at first the time at which the snapshot of the version that changes build on was begun."""
        note = self.seen.note("watermark")
        return datetime.fromisoformat(note) if note else started_at(self._baseline())

    def _changed(self, source: Source, since: datetime, now: datetime) -> Iterator[pa.Table]:
        if not isinstance(source, DatabaseSource):
            raise CatalogError(f"{source.name}: only a database is read by updated_at; compare it: VITRINE_CHANGES=compare:")
        for batch in source.changed_since(since):
            if batch.num_rows:
                rows = read_products(batch, source.name, self.catalogue.options.limits).table
                at = rows["updated_at"]
                rows = rows.filter(
                    pc.and_(pc.greater_equal(at, pa.scalar(since, UPDATED_AT)), pc.less_equal(at, pa.scalar(now, UPDATED_AT)))
                )
                if len(rows):
                    yield rows


def _told_at(row: dict[str, Any], known: dict[str, SeenProduct]) -> datetime:
    """The row's own time; later than what was told, where it changed twice within one tick of the database's clock."""
    before = known.get(row["product_id"])
    return row["updated_at"] if before is None else max(row["updated_at"], before.at + TICK)
