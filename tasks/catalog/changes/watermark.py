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
AROUND = timedelta(seconds=5)
"""Rows whose time lies so near the begin of the snapshot that changes build on are told once more, as later than they say: where times
are whole seconds, the snapshot may hold the row of before with the same time."""


class Watermark(Comparison):
    """An outbox that is filled with a database's rows whose updated_at is later than those seen."""

    @property
    def kind(self) -> str:
        return "rows by updated_at"

    def compare(self) -> int:
        """Puts the rows changed since the watermark into the outbox; returns how many. Rows of a time to come wait for it."""
        self.make_tables()
        self.seen.make_tables()
        now, begin, baseline = self.clock(), self._begin(), self._baseline()
        total, newest, since = 0, begin, begin - LATE
        started = None if self.seen.note("baseline") == baseline else started_at(baseline)
        if started:
            since = min(since, started - AROUND)
        with open_source(self.catalogue.uri, self.catalogue.options) as source, self.database.transaction():
            self.seen.forget_before(begin - LATE)
            for rows in self._changed(source, since, now):
                ids = rows["product_id"].to_pylist()
                digests = content_digests(rows, [n for n in rows.column_names if n not in FIXED_COLUMNS])
                known = self.seen.of(ids)
                again = [started is not None and abs(at - started) <= AROUND for at in rows["updated_at"].to_pylist()]
                new = [n for n, i in enumerate(ids) if again[n] or i not in known or known[i].digest != digests[n]]
                records = zip(rows.take(pa.array(new, pa.int64())).to_pylist(), new, strict=True)
                events = [row_event(r, _told_at(r, known, again[n]), self.catalogue.options.limits) for r, n in records]
                self.put(events)
                self.seen.write([SeenProduct(ids[n], digests[n], e.updated_at) for n, e in zip(new, events, strict=True)])
                total += len(events)
                newest = max(newest, pc.max(rows["updated_at"]).as_py())
            self.seen.set_note("watermark", format_time(newest))
            self.seen.set_note("baseline", baseline)
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


def _told_at(row: dict[str, Any], known: dict[str, SeenProduct], again: bool) -> datetime:
    """The row's own time; later than what was told, or than what a snapshot may say (`again`), of the same tick of the database."""
    before = known.get(row["product_id"])
    own = row["updated_at"] + (TICK if again else timedelta(0))
    return own if before is None else max(own, before.at + TICK)
