"""Draining the queue: selects the pending changes for the next index version and disposes of the other messages."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.addresses import error_line
from serving.contract.segments import lists_pictures
from tasks.catalog.changes.event import UPSERT, Event, MalformedEvent, read_event
from tasks.catalog.changes.ledger import entries, latest_changes, newer
from tasks.catalog.changes.source import ChangeSource, Message
from tasks.catalog.columns import kind_of
from tasks.catalog.product_pictures import IMAGES
from tasks.catalog.schema import DEFAULT_LIMITS, FIXED_COLUMNS, PRODUCT_SCHEMA, RowLimits
from tasks.catalog.values import TYPES, ValueProblem, read

log = logging.getLogger(__name__)

NOTED = 300
"""As much of a reason as stands in a run's note: characters."""
NO_LIMITS = RowLimits(
    longest_title=2**31, longest_uri=2**31, max_price=float("inf"), deepest_category=2**31, most_pictures=2**31, text_only=True
)


@dataclass(frozen=True)
class ParentState:
    """State of the parent version: its ledger, its base's snapshot (key, updated_at), and its row schema."""

    ledger: pa.Table
    products: pa.Table
    columns: pa.Schema


@dataclass(frozen=True)
class DrainResult:
    """The decision on the received messages.

    `rows` (ledger.SCHEMA, without states) are the changes to make; `handles` are acknowledged once they are in a registered
    version: their own, and those of messages that say nothing new. `left` changes were seen and wait for the next time.
    """

    rows: pa.Table
    handles: list[str]
    malformed: int
    contained: int
    left: int
    received: int = 0
    reason: str = ""
    """Why the first malformed message is none."""

    @property
    def note(self) -> str:
        """The dead letters of this run in one sentence for people; "" when there are none."""
        if not self.malformed:
            return ""
        became = "change became a dead letter" if self.received == 1 else "changes became dead letters"
        lists = "lists it" if self.malformed == 1 else "lists them"
        return f"{self.malformed} of {self.received} {became}: {self.reason}; vitrine changes dead {lists}"


def drain(
    source: ChangeSource, held: ParentState, carried: pa.Table, limit: int, wait_s: float, now: datetime,
    limits: RowLimits = DEFAULT_LIMITS,
) -> DrainResult:  # fmt: skip
    """Receives pending messages and takes up to `limit` changes, priority products first; the others stay in the queue.

    `carried` are changes of other versions that must be made as well; they count first. Malformed messages, and products beyond
    `limits`, become dead letters here.
    """
    messages = source.receive(limit * source.ahead, wait_s)
    good, bad = _read(messages, held.columns, now, limits)
    if bad:
        source.dead_letter(bad)
    wanted = newer(latest_changes([carried, entries([e for _, e in good], now)]), held.ledger, held.products)
    ranked = _by_priority(wanted, [e for _, e in good], set(carried["digest"].to_pylist()))
    taken, left = ranked.slice(0, limit), ranked.slice(limit)
    waiting = set(left["digest"].to_pylist())
    release = [m.handle for m, e in good if e.digest in waiting]
    source.release(release)
    # What stays unacknowledged is exactly what is left: an earlier event about the same product may go, a later one remains.
    handles = [m.handle for m, e in good if e.digest not in waiting] + [m.handle for m, _ in bad]
    contained = len({e.digest for _, e in good} - set(wanted["digest"].to_pylist()))
    reason = truncate(bad[0][1], NOTED) if bad else ""
    return DrainResult(taken.sort_by("key"), handles, len(bad), contained, len(left), len(messages), reason)


def event_of(row: dict) -> Event:
    """Parses the event of a ledger row, which was within the limits when it was received."""
    return read_event(row["event"], row["received_at"], NO_LIMITS)


@dataclass
class UpsertSource:
    """The drained upserts as a catalogue source, so that they are copied, validated and embedded like a catalogue."""

    name: str
    image_root: str
    rows: pa.Table
    columns: pa.Schema
    moment: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """The products in order of product_id: the snapshot's columns and the base's extra columns."""
        chosen = self.rows.filter(pc.equal(self.rows["kind"], UPSERT)).sort_by("product_id")
        carried = [f for f in self.columns if f.name not in FIXED_COLUMNS]
        # A column IMAGES of the shop's own, of a base from before, cannot hold lists as well: they wait for the next rebuild.
        own_images = IMAGES in self.columns.names and not lists_pictures(self.columns)
        further = [] if own_images else [pa.field(IMAGES, TYPES["uris"])]
        schema = pa.schema([f for f in PRODUCT_SCHEMA if f.name != "key"] + further + carried)
        records = []
        for row in chosen.to_pylist():
            event = event_of(row)
            own = {f.name: _own_value(event, f) for f in carried}
            records.append(dict(event.product) | own | {"product_id": event.product_id, "updated_at": event.updated_at})
        yield from pa.Table.from_pylist(records, schema).to_batches()

    def photos(self) -> Iterator[pa.RecordBatch]:
        yield from ()


Read = tuple[list[tuple[Message, Event]], list[tuple[Message, str]]]


def _read(messages: list[Message], columns: pa.Schema, now: datetime, limits: RowLimits) -> Read:
    """Parses messages; returns (message, event) pairs, and malformed messages with their reasons.

    Whatever one message holds, the others are taken: an error that nobody thought of makes it a dead letter as well.
    """
    good, bad = [], []
    for message in messages:
        try:
            event = read_event(message.text, now, limits)
            _check_columns(event, columns)
            good.append((message, event))
        except MalformedEvent as error:
            bad.append((message, str(error)))
        except Exception as error:
            log.exception("a message could not be read for a reason that nobody thought of")
            bad.append((message, f"it cannot be read: {type(error).__name__}: {truncate(str(error), NOTED)}"))
    return good, bad


def _check_columns(event: Event, columns: pa.Schema) -> None:
    """Raises MalformedEvent when one of the shop's own columns holds what the index's column of that name cannot."""
    for column in columns:
        if column.name not in FIXED_COLUMNS:
            _own_value(event, column)


def _own_value(event: Event, column: pa.Field) -> Any:
    """The event's value of one of the shop's own columns, as the index holds it; None where it says nothing."""
    value, kind = event.product.get(column.name), kind_of(column.type)
    if value is None or kind is None:
        return None
    try:
        found = read(value, kind)
        return None if found is None else pa.scalar(found, TYPES[kind]).cast(column.type).as_py()
    except (ValueProblem, pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as problem:
        reason = error_line(problem)
        raise MalformedEvent(f"column {column.name}: {reason}; the index has {column.type} there") from None


def truncate(text: str, most: int) -> str:
    """The text cut to at most `most` characters, with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _by_priority(rows: pa.Table, events: list[Event], carried: set[str]) -> pa.Table:
    """Carried-over changes first, then priority ones, then the rest, each in queue order."""
    places = {e.digest: (not e.priority, n) for n, e in reversed(list(enumerate(events)))}
    digests = rows["digest"].to_pylist()
    order = sorted(range(len(digests)), key=lambda i: (False, -1) if digests[i] in carried else places[digests[i]])
    return rows.take(pa.array(order, pa.int64()))
