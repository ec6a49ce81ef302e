"""Changes in a Kafka topic, read by one consumer group; acknowledging is committing offsets.

Partitions are assigned here and not by the group's coordinator: one refresh reads at a time, and it neither waits for a rebalance
nor loses its place to one. Where two read at once, both make the same changes, which does no harm (see ledger.py).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tasks.catalog.changes.event import Event
from tasks.catalog.changes.source import DeadLetter, Message, cut, product_of, storable
from tasks.errors import CatalogAway, CatalogError

TIMEOUT_S = 15.0
SETTLE_S = 2.0
"""How long a partition may be silent before what was received so far is all there is; its high watermark usually says so first."""


class Record(NamedTuple):
    """A record as it was read: the one at `offset`, before which there is nothing back to `first`; `at` is when it was written."""

    partition: int
    first: int
    offset: int
    text: str
    reason: str
    at: datetime


LARGEST_KEY, LARGEST_CUT = 1000, 100_000
"""Bytes of a key, and of a dead letter that was too long for its topic with the reason beside it."""


class KafkaTopic:
    """The topic, its topic of dead letters and the group. A handle is "partition:from:offset": the message at `offset`, before
    which there is nothing back to `from` (a compacted topic has holes)."""

    ahead = 5  # an offset acknowledges everything before it, so looking further costs only reading it again

    def __init__(self, servers: str, topic: str, dead: str, group: str) -> None:
        self.servers, self.topic, self.dead_topic, self.group = servers, topic, dead, group
        self.name = f"Kafka topic {topic}"
        self.consumer = self._consumer(group)
        self._producer: Any = None

    @classmethod
    def open(cls, uri: str) -> "KafkaTopic":
        """kafka://host:port[,host:port]/topic[?group=vitrine&dead=topic-dead]. Raises CatalogError when no broker answers."""
        from confluent_kafka import KafkaException

        parts = urlsplit(uri)
        topic, options = parts.path.strip("/"), parse_qs(parts.query)
        if not parts.netloc or not topic:
            raise CatalogError(f"{uri}: expected kafka://host:port/topic")
        found = cls(parts.netloc, topic, options.get("dead", [f"{topic}-dead"])[0], options.get("group", ["vitrine"])[0])
        try:
            found._partitions(topic)
        except KafkaException as error:
            found.close()
            raise CatalogAway(f"Kafka does not answer at {parts.netloc}: {error.args[0].str()}") from None
        return found

    def send(self, events: Sequence[Event]) -> None:
        self._produce(self.topic, [(e.product_id, e.text, {}) for e in events])

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        with _clear():
            found = self._read(self.consumer, self.topic, limit, wait_s)
            return [Message(r.text, f"{r.partition}:{r.first}:{r.offset}") for r in found]

    def extend(self, handles: Sequence[str], seconds: int) -> None:
        """No-op: messages stay in the topic."""

    def acknowledge(self, handles: Sequence[str]) -> None:
        """Commits each partition up to the first message not in `handles`; later messages are delivered again."""
        from confluent_kafka import TopicPartition

        spans: dict[int, list[tuple[int, int]]] = {}
        for handle in handles:
            partition, first, offset = map(int, handle.split(":"))
            spans.setdefault(partition, []).append((first, offset))
        if not spans:
            return
        with _clear():
            wanted = []
            for place in self._committed(self.consumer, self.topic, sorted(spans)):
                end = place.offset
                for first, offset in sorted(spans[place.partition]):
                    if first <= end <= offset:
                        end = offset + 1
                if end > place.offset:
                    wanted.append(TopicPartition(self.topic, place.partition, end))
            if wanted:
                self.consumer.commit(offsets=wanted, asynchronous=False)

    def release(self, handles: Sequence[str]) -> None:
        """No-op: uncommitted messages are read again."""

    def dead_letter(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Writes to the dead-letter topic; the offsets are committed with the others'."""
        self._produce(
            self.dead_topic, [(product_of(m.text), m.text, {"reason": storable(reason)}) for m, reason in messages], LARGEST_CUT
        )

    def count_waiting(self) -> int:
        with _clear():
            return self._behind(self.consumer, self.topic)

    def oldest_at(self) -> datetime | None:
        with _clear():
            places = self._committed(self.consumer, self.topic, self._partitions(self.topic))
            ends = self._ends(self.consumer, places)
            behind = [p for p in places if ends[p.partition] > p.offset]
            return min((r.at for p in behind for r in self._poll(self.consumer, [p], ends, 1)), default=None)

    def count_dead_letters(self) -> int:
        with _clear(), self._dead_reader() as (reader, topic):
            return self._behind(reader, topic)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        with _clear(), self._dead_reader() as (reader, topic):
            places = self._committed(reader, topic, self._partitions(topic))
            ends = self._ends(reader, places)
            for place in places:
                place.offset = max(place.offset, ends[place.partition] - limit)
            found = self._poll(reader, places, ends, limit * len(places))
            found.sort(key=lambda r: (r.at, r.partition, r.offset), reverse=True)
            return [DeadLetter(r.text, r.reason, f"{r.partition}:{r.offset}", r.at) for r in found[:limit]]

    def requeue(self) -> int:
        from confluent_kafka import TopicPartition

        with _clear(), self._dead_reader() as (reader, topic):
            found = self._read(reader, topic, self._behind(reader, topic), 0)
            self._produce(self.topic, [(product_of(r.text), r.text, {}) for r in found])
            ends: dict[int, int] = {}
            for record in found:
                ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
            if ends:
                reader.commit(offsets=[TopicPartition(topic, p, o) for p, o in ends.items()], asynchronous=False)
            return len(found)

    def close(self) -> None:
        self.consumer.close()
        if self._producer is not None:
            self._producer.flush(TIMEOUT_S)

    def _consumer(self, group: str) -> Any:
        from confluent_kafka import Consumer

        return Consumer({
            "bootstrap.servers": self.servers, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "log_level": 0, "allow.auto.create.topics": True,
        })  # fmt: skip

    @contextmanager
    def _dead_reader(self) -> Iterator[tuple[Any, str]]:
        reader = self._consumer(f"{self.group}-dead")
        try:
            yield reader, self.dead_topic
        finally:
            reader.close()

    def _partitions(self, topic: str) -> list[int]:
        """The topic's partitions; waits a moment for a topic that is being created."""
        until = time.monotonic() + TIMEOUT_S
        while True:
            found = self.consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
            if found.error is None and found.partitions:
                return sorted(found.partitions)
            if time.monotonic() > until:
                raise CatalogError(f"Kafka has no topic {topic!r}: {found.error}; create it, or allow topics to be made")
            time.sleep(0.2)

    def _committed(self, reader: Any, topic: str, partitions: Sequence[int]) -> list[Any]:
        """The group's committed offset per partition, or the earliest available one."""
        from confluent_kafka import TopicPartition

        places = reader.committed([TopicPartition(topic, p) for p in partitions], timeout=TIMEOUT_S)
        for place in places:
            low, _ = reader.get_watermark_offsets(place, timeout=TIMEOUT_S)
            place.offset = max(place.offset, low)  # -1001: nothing committed yet
        return places

    def _ends(self, reader: Any, places: Sequence[Any]) -> dict[int, int]:
        return {p.partition: reader.get_watermark_offsets(p, timeout=TIMEOUT_S)[1] for p in places}

    def _behind(self, reader: Any, topic: str) -> int:
        places = self._committed(reader, topic, self._partitions(topic))
        ends = self._ends(reader, places)
        return sum(max(ends[p.partition] - p.offset, 0) for p in places)

    def _read(self, reader: Any, topic: str, limit: int, wait_s: float) -> list[Record]:
        """Up to `limit` records after the committed offsets; waits up to `wait_s` for the first."""
        places = self._committed(reader, topic, self._partitions(topic))
        next_ = {p.partition: p.offset for p in places}
        until = time.monotonic() + wait_s
        ends = self._ends(reader, places)
        while all(ends[p] <= next_[p] for p in next_) and time.monotonic() < until:
            time.sleep(0.1)
            ends = self._ends(reader, places)
        return self._poll(reader, places, ends, limit)

    def _poll(self, reader: Any, places: Sequence[Any], ends: dict[int, int], limit: int) -> list[Record]:
        """Up to `limit` records between `places` and `ends` (partition -> offset); commits nothing."""
        next_ = {p.partition: p.offset for p in places}
        found: list[Record] = []
        reader.assign(places)
        heard = time.monotonic()
        try:
            while len(found) < limit and any(ends[p] > next_[p] for p in next_) and time.monotonic() - heard < SETTLE_S:
                message = reader.poll(0.2)
                if message is None:
                    continue
                if message.error() is not None:
                    raise CatalogAway(f"Kafka: {message.error().str()}")
                heard = time.monotonic()
                partition, offset = message.partition(), message.offset()
                reasons = [v for k, v in message.headers() or [] if k == "reason" and v]
                reason = reasons[-1].decode(errors="backslashreplace") if reasons else ""
                text = (message.value() or b"").decode(errors="surrogateescape")  # the parser refuses what is not UTF-8
                at = datetime.fromtimestamp(max(message.timestamp()[1], 0) / 1000, UTC)
                found.append(Record(partition, next_[partition], offset, text, reason, at))
                next_[partition] = offset + 1
        finally:
            reader.unassign()
        return found

    def _produce(self, topic: str, records: Sequence[tuple[str, str, dict[str, str]]], shorten_to: int = 0) -> None:
        """Writes (key, text, headers); with `shorten_to`, a text that the broker finds too long is cut to so many bytes."""
        from confluent_kafka import KafkaException, Producer

        if not records:
            return
        if self._producer is None:
            options = {"bootstrap.servers": self.servers, "enable.idempotence": True, "log_level": 0, "linger.ms": 5}
            self._producer = Producer(options | {"message.timeout.ms": int(1000 * TIMEOUT_S)})
        failed: list[str] = []

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error.str())

        for key, text, headers in records:
            value, chosen = text.encode(errors="surrogateescape"), cut(key, LARGEST_KEY).encode()
            while True:
                try:
                    self._producer.produce(topic, value, chosen, headers=list(headers.items()), on_delivery=told)
                    break
                except BufferError:  # the producer's own queue is full
                    self._producer.poll(1)
                except KafkaException as error:
                    if not shorten_to or len(value) <= shorten_to:
                        raise CatalogError(f"Kafka did not take a message of {len(value)} bytes: {error.args[0].str()}") from None
                    value = cut(storable(text), shorten_to).encode()
            self._producer.poll(0)
        left = self._producer.flush(TIMEOUT_S)
        if failed or left:
            raise CatalogAway(f"Kafka did not take {len(failed) + left} messages: {failed[0] if failed else 'no answer in time'}")


@contextmanager
def _clear() -> Iterator[None]:
    """What the broker or its absence says, as one sentence."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        raise CatalogAway(f"Kafka: {error.args[0].str()}") from None
