"""The queue of catalogue changes: one protocol for outbox, SQS, Kafka, and what is found by reading the catalogue."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks.catalog.changes.event import Event
from tasks.errors import CatalogError, SettingsError

if TYPE_CHECKING:
    from tasks.catalog.changes.comparison import ComparedCatalogue


@dataclass(frozen=True)
class Message:
    """A received message: its text, and the handle that acknowledges it (may be stored and used by another process)."""

    text: str
    handle: str


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be used, and why. `id` names it in its queue; `at` is when it became one, None where that is not kept."""

    text: str
    reason: str
    id: str = ""
    at: datetime | None = None

    @property
    def product_id(self) -> str:
        """The product that the message is about; "" where it does not say."""
        return product_of(self.text)


class CountUnavailable(CatalogError):
    """A queue cannot count this cheaply; the message says so."""


class ChangeSource(Protocol):
    """A queue of changes with at-least-once delivery: received messages stay in the queue until acknowledged."""

    name: str
    ahead: int
    """How many times more than wanted may be received without harm, so that priority products are found further behind."""

    def send(self, events: Sequence[Event]) -> None:
        """Enqueues events; returns when they are durable."""

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """At most `limit` messages, oldest first as far as the queue knows; waits up to `wait_s` for the first."""

    def extend(self, handles: Sequence[str], seconds: int) -> None:
        """Extends the visibility timeout of received messages to `seconds` from now."""

    def acknowledge(self, handles: Sequence[str]) -> None:
        """Removes messages from the queue. Idempotent."""

    def release(self, handles: Sequence[str]) -> None:
        """Makes received messages visible to others again."""

    def dead_letter(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Moves messages with their reasons to the dead letters, at least once each."""

    def count_waiting(self) -> int:
        """Number of unacknowledged messages; approximate for SQS and Kafka."""

    def oldest_at(self) -> datetime | None:
        """When the oldest pending message arrived; None when none is pending. Raises CountUnavailable."""

    def count_dead_letters(self) -> int:
        """Number of dead letters; approximate for SQS and Kafka."""

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Dead letters, newest first as far as the queue knows; reading does not consume them."""

    def requeue(self) -> int:
        """Moves all dead letters back to the queue; returns how many."""

    def close(self) -> None:
        """Closes connections."""


@contextmanager
def open_changes(uri: str, catalog_uri: str, home: Path, compared: "ComparedCatalogue | None" = None) -> Iterator[ChangeSource]:
    """The queue that VITRINE_CHANGES names: outbox:, sqs://queue, kafka://host:port/topic, compare: or updated_at:.

    `outbox:` is a table in the catalogue's database, or, where the catalogue is a folder, in <home>/catalog/changes.db;
    outbox:<database uri> names another one. `compare:` and `updated_at:` keep theirs there too, or in the database that they name;
    `compared` is what they read.
    """
    source = _open(uri, catalog_uri, home, compared)
    try:
        yield source
    finally:
        source.close()


def _open(uri: str, catalog_uri: str, home: Path, compared: "ComparedCatalogue | None") -> ChangeSource:
    scheme, _, rest = uri.partition(":")
    if scheme == "outbox":
        from tasks.catalog.changes.outbox import Outbox

        database = rest or _database(catalog_uri, home)
        return Outbox.open(database, existing=database == catalog_uri)
    if scheme in ("compare", "updated_at"):
        from tasks.catalog.changes.comparison import ComparedCatalogue, Comparison
        from tasks.catalog.changes.outbox import open_database
        from tasks.catalog.changes.watermark import Watermark

        kind = Comparison if scheme == "compare" else Watermark
        return kind(*open_database(rest or _database("", home)), compared or ComparedCatalogue(catalog_uri))
    if scheme == "sqs":
        from tasks.catalog.changes.sqs import SqsQueue

        return SqsQueue.open(uri)
    if scheme == "kafka":
        from tasks.catalog.changes.kafka import KafkaTopic

        return KafkaTopic.open(uri)
    raise SettingsError(
        f"VITRINE_CHANGES={uri!r}: expected outbox:, sqs://queue, kafka://host:port/topic, compare: or updated_at:"
    )


def lies_below_home(uri: str, catalog_uri: str) -> bool:
    """Whether `open_changes` keeps this queue in a file below home, which only this machine sees."""
    scheme, _, rest = uri.partition(":")
    own = _database("" if scheme in ("compare", "updated_at") else catalog_uri, Path())
    return scheme in ("outbox", "compare", "updated_at") and not rest and own != catalog_uri


def _database(catalog_uri: str, home: Path) -> str:
    if catalog_uri.startswith(("sqlite:///", "postgresql://", "postgres://")):
        return catalog_uri
    return f"sqlite:///{home / 'catalog' / 'changes.db'}"


def product_of(text: str) -> str:
    """The product id in a message, valid or not; "" when it has none."""
    try:
        found = json.loads(text).get("product_id")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return storable(str(found)) if isinstance(found, str | int) else ""


def storable(text: str) -> str:
    """A text that every queue and database takes: what is no character (bytes that are not UTF-8, NULs) as a visible escape."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")


def cut(text: str, most_bytes: int) -> str:
    """A text of at most `most_bytes` bytes of UTF-8; one that was cut says so at its end."""
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    end = f"… (cut: it had {len(data)} bytes)"
    return data[: max(0, most_bytes - len(end.encode()))].decode(errors="ignore") + end
