"""Draining the queue: selects the pending changes for the next index version and disposes of the other messages."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.changes.event import UPSERT, Event, MalformedEvent, read_event
from tasks.catalog.changes.ledger import entries, latest_changes, newer
from tasks.catalog.changes.source import ChangeSource, Message
from tasks.catalog.schema import PRODUCT_SCHEMA

NOTED, QUOTED = 300, 120
"""As much of a reason as stands in a run's note, and of a value as stands in a reason: characters."""
JSON_TYPES = {
    dict: "a JSON object", list: "a JSON array", str: "a text", bool: "true or false", int: "a number", float: "a number",
    type(None): "null",
}  # fmt: skip


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


def drain(source: ChangeSource, held: ParentState, carried: pa.Table, limit: int, wait_s: float, now: datetime) -> DrainResult:
    """Receives pending messages and takes up to `limit` changes, priority products first; the others stay in the queue.

    `carried` are changes of other versions that must be made as well; they count first. Malformed messages are buried here.
    """
    messages = source.receive(limit * source.ahead, wait_s)
    good, bad = _read(messages, held.columns, now)
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
    """Parses the event of a ledger row."""
    return read_event(row["event"], row["received_at"])


@dataclass
class UpsertSource:
    """The drained upserts as a catalogue source, so that they are copied, validated and embedded like a catalogue."""

    name: str
    image_root: str
    rows: pa.Table
    columns: pa.Schema
    moment: str = ""

    def products(self, after: str = "") -> Iterator[pa.RecordBatch]:
        """The products in order of product_id: the snapshot's columns and the base's extra columns."""
        chosen = self.rows.filter(pc.equal(self.rows["kind"], UPSERT)).sort_by("product_id")
        carried = [f for f in self.columns if f.name not in PRODUCT_SCHEMA.names]
        schema = pa.schema([f for f in PRODUCT_SCHEMA if f.name != "key"] + carried)
        records = []
        for row in chosen.to_pylist():
            event = event_of(row)
            records.append(dict(event.product) | {"product_id": event.product_id, "updated_at": event.updated_at})
        yield from pa.Table.from_pylist(records, schema).to_batches()

    def photos(self) -> Iterator[pa.RecordBatch]:
        yield from ()


Read = tuple[list[tuple[Message, Event]], list[tuple[Message, str]]]


def _read(messages: list[Message], columns: pa.Schema, now: datetime) -> Read:
    """Parses messages; returns (message, event) pairs, and malformed messages with their reasons."""
    good, bad = [], []
    for message in messages:
        try:
            event = read_event(message.text, now)
            _check_columns(event, columns)
            good.append((message, event))
        except MalformedEvent as error:
            bad.append((message, str(error)))
    return good, bad


def _check_columns(event: Event, columns: pa.Schema) -> None:
    """Raises MalformedEvent when an extra column has a value of another type than the index."""
    for field in columns:
        if field.name in PRODUCT_SCHEMA.names or field.name not in event.product:
            continue
        value = event.product[field.name]
        try:
            pa.array([value], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            raise MalformedEvent(
                f"column {field.name} holds {truncate(repr(value), QUOTED)} ({JSON_TYPES[type(value)]}); the index has {field.type} there"
            ) from None


def truncate(text: str, most: int) -> str:
    """The text cut to at most `most` characters, with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _by_priority(rows: pa.Table, events: list[Event], carried: set[str]) -> pa.Table:
    """Carried-over changes first, then priority ones, then the rest, each in queue order."""
    places = {e.digest: (not e.priority, n) for n, e in reversed(list(enumerate(events)))}
    digests = rows["digest"].to_pylist()
    order = sorted(range(len(digests)), key=lambda i: (False, -1) if digests[i] in carried else places[digests[i]])
    return rows.take(pa.array(order, pa.int64()))
