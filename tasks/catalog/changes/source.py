"""Where changes come from: one protocol for the outbox, SQS and Kafka."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tasks.catalog.changes.event import Event
from tasks.errors import SettingsError


@dataclass(frozen=True)
class Message:
    """A message as it was received: its text, and the handle that acknowledges it (kept between processes as it is)."""

    text: str
    handle: str


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be used, and why."""

    text: str
    reason: str


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

    def bury(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Puts messages with their reasons among the dead letters; at least once each, and out of the queue where it allows it."""

    def waiting(self) -> int:
        """How many messages are not acknowledged; SQS and Kafka count as exactly as they can."""

    def dead(self, limit: int) -> list[DeadLetter]:
        """Dead letters, oldest first."""

    def revive(self) -> int:
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

        return Outbox.open(uri[len("outbox:") :] or _database(catalog_uri, home))
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
