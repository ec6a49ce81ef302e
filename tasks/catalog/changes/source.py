"""Where changes come from: one protocol for the outbox, SQS and Kafka."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tasks.catalog.changes.event import Event
from tasks.errors import CatalogError, SettingsError


@dataclass(frozen=True)
class Message:
    """A message as it was received: its text, and the handle that acknowledges it (kept between processes as it is)."""

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
    """A queue cannot tell this cheaply; the message says so."""


class ChangeSource(Protocol):
    """A queue of changes. What is received stays in the queue until it is acknowledged, whatever happens to the receiver."""

    name: str
    ahead: int
    """How many times more than wanted may be received without harm, so that priority products are found further behind."""

    def send(self, events: Sequence[Event]) -> None:
        """Puts events into the queue; returns when they are safe there."""

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """At most `limit` messages, oldest first as far as the queue knows; waits up to `wait_s` for the first one."""

    def extend(self, handles: Sequence[str], seconds: int) -> None:
        """Keeps received messages from being given to others for so long, counted from now."""

    def acknowledge(self, handles: Sequence[str]) -> None:
        """Takes messages out of the queue for good. Again for the same ones does nothing."""

    def release(self, handles: Sequence[str]) -> None:
        """Gives messages back that were received and are not used now."""

    def dead_letter(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Puts messages with their reasons among the dead letters; at least once each, and out of the queue where it allows it."""

    def count_waiting(self) -> int:
        """How many messages are not acknowledged; SQS and Kafka count as exactly as they can."""

    def oldest_at(self) -> datetime | None:
        """When the message that waits longest came, as exactly as the queue knows; None when none waits. Raises NotCounted."""

    def count_dead_letters(self) -> int:
        """How many dead letters there are; SQS and Kafka count as exactly as they can."""

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Dead letters, newest first as far as the queue knows; looking does not take them away."""

    def requeue(self) -> int:
        """Sends every dead letter to the queue again; gives how many."""

    def close(self) -> None:
        """Lets go of connections."""


@contextmanager
def open_changes(uri: str, catalog_uri: str, home: Path) -> Iterator[ChangeSource]:
    """The source that VITRINE_CHANGES names: outbox:, sqs://queue or kafka://host:port/topic.

    `outbox:` is a table in the catalogue's database, or, where the catalogue is a folder, in <home>/catalog/changes.db;
    outbox:<database uri> names another one.
    """
    source = _open(uri, catalog_uri, home)
    try:
        yield source
    finally:
        source.close()


def _open(uri: str, catalog_uri: str, home: Path) -> ChangeSource:
    scheme = urlsplit(uri).scheme
    if scheme == "outbox":
        from tasks.catalog.changes.outbox import Outbox

        database = uri[len("outbox:") :] or _database(catalog_uri, home)
        return Outbox.open(database, existing=database == catalog_uri)
    if scheme == "sqs":
        from tasks.catalog.changes.sqs import SqsQueue

        return SqsQueue.open(uri)
    if scheme == "kafka":
        from tasks.catalog.changes.kafka import KafkaTopic

        return KafkaTopic.open(uri)
    raise SettingsError(f"VITRINE_CHANGES={uri!r}: expected outbox:, sqs://queue or kafka://host:port/topic")


def _database(catalog_uri: str, home: Path) -> str:
    if catalog_uri.startswith(("sqlite:///", "postgresql://", "postgres://")):
        return catalog_uri
    return f"sqlite:///{home / 'catalog' / 'changes.db'}"


def product_of(text: str) -> str:
    """The product id in a message, whatever else may be wrong with it; "" where there is none."""
    try:
        found = json.loads(text).get("product_id")
    except (ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""
