"""Changes of a catalogue without an outbox, found by reading it: they are put into an outbox of our own and go on from there.

`compare:` reads the whole catalogue and compares each product with what was seen last (`updated_at:` is in watermark.py). What was
found and what was seen are written in one transaction, so that a killed run loses and repeats nothing; found changes stay in the
outbox until they are acknowledged, which happens once their index version is registered.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.segments import lists_pictures
from tasks.catalog.changes.event import Event, MalformedEvent, delete
from tasks.catalog.changes.ledger import SKEW
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.changes.outbox_database import Database
from tasks.catalog.changes.seen import Seen, SeenProduct
from tasks.catalog.changes.sending import row_event
from tasks.catalog.changes.source import Message
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.schema import FIXED_COLUMNS, PRODUCT_SCHEMA, read_products
from tasks.catalog.snapshot import product_batches, started_at
from tasks.catalog.sources import Source, SourceOptions, open_source
from tasks.errors import CatalogError

log = logging.getLogger(__name__)

TICK = timedelta(microseconds=1)
LEAST_DELETES = 100
"""So few deletes are never taken for a broken export."""
GONE = ""
"""The digest of a product that is gone."""
UNSURE = "?"
"""The digest of a product of which more was told than the snapshot says: it differs from whatever is found, and is told again."""


@dataclass(frozen=True)
class ComparedCatalogue:
    """What is compared: the catalogue, and the snapshot of the version that changes build on (its uri; "" for none yet).

    More deletes at once than the share `most_dropped` of all products are refused.
    """

    uri: str
    options: SourceOptions = field(default_factory=SourceOptions)
    baseline: str = ""
    most_dropped: float = 0.2


class Comparison(Outbox):
    """An outbox that is filled by comparing the catalogue with what was seen, whenever it is asked for changes."""

    def __init__(
        self,
        name: str,
        database: Database,
        catalogue: ComparedCatalogue,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(name, database)
        self.name = f"{self.kind} ({name})"
        self.catalogue, self.clock = catalogue, clock
        self.seen = Seen(database)

    @property
    def kind(self) -> str:
        """What fills this outbox, in words."""
        return "comparison of the catalogue"

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """Compares once and gives what is in the outbox; where that is nothing, the next comparison is `wait_s` from this one."""
        until = time.monotonic() + wait_s
        self.compare()
        found = super().receive(limit, 0)
        if not found:
            time.sleep(max(0.0, until - time.monotonic()))
        return found

    def compare(self) -> int:
        """Puts what changed since the last time into the outbox; returns how many changes.

        A catalogue whose moment is the last one's is not read, unless it is a query's answer. Raises CatalogError for a catalogue that
        cannot be read, that has an id twice, or that has lost so many products that its export may be broken; nothing is noted then.
        """
        self.make_tables()
        self.seen.make_tables()
        self._start_from_baseline()
        now = self.clock()
        with open_source(self.catalogue.uri, self.catalogue.options) as source:
            asked = bool(self.catalogue.options.query)  # whose answer may depend on the time, or on other servers
            if source.moment and source.moment == self.seen.note("moment") and not asked:
                return 0
            with self.database.transaction():
                found = self._emit_changes(source, now)
                self.seen.set_note("moment", source.moment)
        log.info("%s: %d changes found", self.name, found)
        return found

    def _baseline(self) -> str:
        if not self.catalogue.baseline:
            raise CatalogError("there is no index version to compare the catalogue with; run the DAG rebuild_index first")
        return self.catalogue.baseline

    def _start_from_baseline(self) -> None:
        """Takes what the version that changes build on was built from as seen, once for every such snapshot.

        What was told since it was begun is carried over to that version, or is lost with another one. Whichever it is, the product is
        told again, even where the catalogue has returned to what the snapshot says.
        """
        baseline = self._baseline()
        if self.seen.note("baseline") == baseline:
            return
        begun = started_at(baseline) - SKEW
        with self.database.transaction():
            own: list[str] = []
            for products, known in _side_by_side(product_batches(baseline), self.seen):
                own = [n for n in products.column_names if n not in FIXED_COLUMNS]
                digests, times = content_digests(products, own), products["updated_at"].to_pylist()
                ids = products["product_id"].to_pylist()
                changed = [
                    SeenProduct(
                        i, UNSURE if i in known and known[i].at >= begun else d, max(at, known[i].at) if i in known else at
                    )
                    for i, d, at in zip(ids, digests, times, strict=True)
                    if i not in known or known[i].digest != d
                ]
                there = set(ids)
                changed += [
                    SeenProduct(s.product_id, UNSURE if s.at >= begun else GONE, s.at)
                    for s in known.values()
                    if s.product_id not in there and s.digest
                ]
                self.seen.write(changed)
            self.seen.set_note("baseline", baseline)
            self.seen.set_note("columns", "\n".join(own))
            self.seen.set_note("moment", "")

    def _emit_changes(self, source: Source, now: datetime) -> int:
        """Writes events of what differs, and notes it as seen."""
        own = [name for name in self.seen.note("columns").split("\n") if name]
        total = gone = 0
        limits = self.catalogue.options.limits
        unusable: set[str] = set()

        def usable() -> Iterator[pa.Table]:
            for batch in source.products():
                if batch.num_rows:
                    rows = read_products(batch, source.name, limits)
                    unusable.update(row.product_id for row in rows.unusable)
                    yield rows.table

        known_products = self.seen.count()
        for products, known in _side_by_side(usable(), self.seen, source.name):
            ids, digests = products["product_id"].to_pylist(), content_digests(products, own)
            rows = [n for n, i in enumerate(ids) if i not in known or known[i].digest != digests[n]]
            events, changed = [], []
            for n, row in zip(rows, products.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
                event = _upsert(row, known.get(ids[n]), now, self.catalogue.options)
                events.append(event)
                changed.append(SeenProduct(ids[n], digests[n], event.updated_at))
            there = set(ids) | unusable
            for product in known.values():
                if product.product_id not in there and product.digest:
                    events.append(delete(product.product_id, max(now, product.at + TICK)))
                    changed.append(SeenProduct(product.product_id, GONE, events[-1].updated_at))
                    gone += 1
            self.put(events)
            self.seen.write(changed)
            total += len(events)
        if gone > max(LEAST_DELETES, self.catalogue.most_dropped * known_products):
            raise CatalogError(
                f"{source.name}: {gone} of {known_products} products are gone since the last comparison, allowed "
                f"{self.catalogue.most_dropped * 100:.3g} %: VITRINE_MOST_DROPPED; the export may be broken"
            )
        return total

    def put(self, events: Sequence[Event]) -> None:
        self.database.execute("INSERT INTO outbox (event, priority) VALUES ({}, {})", [(e.text, e.priority) for e in events])


def _upsert(row: dict, known: SeenProduct | None, now: datetime, options: SourceOptions) -> Event:
    """The event of a row: its own time where that was set anew and is no time to come, else the time at which it was found."""
    own = row["updated_at"]
    found_at = max(now, known.at + TICK) if known else now
    try:
        return row_event(row, own if known and known.at < own <= now else found_at, options.limits)
    except MalformedEvent as error:
        raise CatalogError(f"product {row['product_id']!r}: {error}") from None


def _side_by_side(
    batches: Iterator[pa.Table | pa.RecordBatch], seen: Seen, where: str = ""
) -> Iterator[tuple[pa.Table, dict[str, SeenProduct]]]:
    """Products in order of id, each batch with what was seen of all ids up to its last; what was seen beyond comes last, alone."""
    last, empty = "", None
    for batch in batches:
        table = pa.table(batch) if isinstance(batch, pa.RecordBatch) else batch
        empty = table.slice(0, 0)
        if not len(table):
            continue
        ids = table["product_id"].to_pylist()
        twice = next((b for a, b in zip([last, *ids], ids, strict=False) if b <= a), None)
        if twice is not None:
            raise CatalogError(f"{where}: product_id {twice!r} occurs more than once; ids must be unique")
        yield table, seen.between(last, ids[-1])
        last = ids[-1]
    for known in seen.beyond(last):
        yield (PRODUCT_SCHEMA.empty_table() if empty is None else empty), known


def content_digests(products: pa.Table, own: Sequence[str]) -> list[str]:
    """A hash of each row over the snapshot's columns and the columns `own`, missing ones as missing; further pictures count where a
    product has some."""
    names = [n for n in PRODUCT_SCHEMA.names if n != "key"] + [n for n in own if n not in FIXED_COLUMNS]
    if not len(products):
        return []
    parts = []
    for name in names:
        if name not in products.column_names:
            parts.append(pa.chunked_array([pa.repeat(pa.scalar("\0"), len(products))]))
            continue
        column = products[name]
        if pa.types.is_list(column.type):
            column = pc.binary_join(column, "\x1f")
        elif pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            column = _number_texts(column)
        parts.append(pc.fill_null(column.cast(pa.string()), "\0"))
    lines = pc.binary_join_element_wise(*parts, "\x1e").to_pylist()
    if lists_pictures(products.schema):
        further = products[IMAGES].to_pylist()
        lines = [f"{line}\x1d{chr(31).join(uris)}" if uris else line for line, uris in zip(lines, further, strict=True)]
    return [hashlib.blake2b(line.encode(), digest_size=16).hexdigest() for line in lines]


def _number_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as texts, whole ones as doubles are, since SQLite's columns are whole until one is not; those that no double holds as
    they are."""
    texts = column.cast(pa.float64(), safe=False).cast(pa.string())
    if not pa.types.is_integer(column.type):
        return texts
    exact = pc.and_(pc.greater_equal(column, -(2**53)), pc.less_equal(column, 2**53))
    return pc.if_else(exact, texts, column.cast(pa.string()))
