"""Changes in an SQS queue. Endpoint and credentials come from the environment as for every AWS tool."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tasks.catalog.changes.event import Event
from tasks.catalog.changes.source import CountUnavailable, DeadLetter, Message, cut, storable
from tasks.errors import CatalogAway, CatalogError

BATCH = 10
"""SQS's own limit of a batch."""
LONG_POLL_S = 20
VISIBLE_S = 1800
"""How long a received message is kept from others at first; a step that works longer asks for more."""
MOST_RECEIVED = 20
"""After so many receptions without an acknowledgement SQS itself moves a message to the dead letters."""
REASON = "reason"
SENT = "SentTimestamp"
EPOCH = datetime.fromtimestamp(0, UTC)
LARGEST = 250_000
"""Bytes of one message, and of the messages of one call: SQS takes 262,144 (AWS, Quotas related to messages)."""


class SqsQueue:
    """An SQS queue and its dead-letter queue. Standard queues: neither order nor single delivery is needed."""

    ahead = 1  # what is received and given back again counts towards MOST_RECEIVED

    def __init__(self, client: Any, name: str, dead_name: str) -> None:
        self.client, self.name = client, f"SQS queue {name}"
        self.dead_url = self._queue(dead_name, {})
        arn = client.get_queue_attributes(QueueUrl=self.dead_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": MOST_RECEIVED}
        self.url = self._queue(name, {"RedrivePolicy": json.dumps(redrive)})

    @classmethod
    def open(cls, uri: str) -> "SqsQueue":
        """sqs://<queue>[?dead=<queue>] (default: <queue>-dead). Missing queues are created."""
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        parts = urlsplit(uri)
        dead = parse_qs(parts.query).get("dead", [f"{parts.netloc}-dead"])[0]
        try:
            return cls(boto3.client("sqs"), parts.netloc, dead)
        except (BotoCoreError, ClientError) as error:
            failure = CatalogError if isinstance(error, ClientError) else CatalogAway
            raise failure(f"{uri}: SQS cannot be used: {error}") from None

    def send(self, events: Sequence[Event]) -> None:
        self._send(self.url, [{"MessageBody": e.text} for e in events])

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        found: list[Message] = []
        while len(found) < limit:
            # Only the first reception waits: after it, an empty answer means that the queue is drained.
            answer = self.client.receive_message(
                QueueUrl=self.url, MaxNumberOfMessages=min(BATCH, limit - len(found)), VisibilityTimeout=VISIBLE_S,
                WaitTimeSeconds=0 if found else min(round(wait_s), LONG_POLL_S),
            )  # fmt: skip
            messages = answer.get("Messages", [])
            if not messages:
                break
            found += [Message(m["Body"], m["ReceiptHandle"]) for m in messages]
        return found

    def extend(self, handles: Sequence[str], seconds: int) -> None:
        self._visible(handles, seconds)

    def acknowledge(self, handles: Sequence[str]) -> None:
        def delete(entries: list[dict[str, str]]) -> Any:
            return self.client.delete_message_batch(QueueUrl=self.url, Entries=entries)

        _in_batches([{"ReceiptHandle": h} for h in handles], delete)

    def release(self, handles: Sequence[str]) -> None:
        self._visible(handles, 0)

    def dead_letter(self, messages: Sequence[tuple[Message, str]]) -> None:
        """Sends to the dead-letter queue, then deletes: a kill between the two leaves a message in both."""
        self._send(
            self.dead_url,
            [
                {
                    "MessageBody": cut(storable(m.text) or "(an empty message)", LARGEST),
                    "MessageAttributes": {REASON: {"DataType": "String", "StringValue": _printable(reason)[:1000] or "unknown"}},
                }
                for m, reason in messages
            ],
        )
        self.acknowledge([m.handle for m, _ in messages])

    def count_waiting(self) -> int:
        return self._count(self.url)

    def oldest_at(self) -> datetime | None:
        if not self.count_waiting():
            return None
        raise CountUnavailable(
            "SQS tells the age of its oldest message only in CloudWatch, as the queue's metric ApproximateAgeOfOldestMessage"
        )

    def count_dead_letters(self) -> int:
        return self._count(self.dead_url)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Some of them, newest first: SQS gives them in no order. While they are listed they are invisible to `requeue`."""
        letters = list(self._dead_letters(limit))
        self._visible([handle for _, handle in letters], 0, self.dead_url)
        return sorted((letter for letter, _ in letters), key=lambda x: (x.at or EPOCH, x.id), reverse=True)

    def requeue(self) -> int:
        count = 0
        for letter, handle in self._dead_letters(None):
            self._send(self.url, [{"MessageBody": letter.text}])
            self.client.delete_message(QueueUrl=self.dead_url, ReceiptHandle=handle)
            count += 1
        return count

    def close(self) -> None:
        self.client.close()

    def _queue(self, name: str, attributes: dict[str, str]) -> str:
        try:
            return str(self.client.get_queue_url(QueueName=name)["QueueUrl"])
        except self.client.exceptions.QueueDoesNotExist:
            return str(self.client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])

    def _count(self, url: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        found = self.client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(found.get(name, 0)) for name in names)

    def _dead_letters(self, limit: int | None) -> Iterator[tuple[DeadLetter, str]]:
        count = 0
        while limit is None or count < limit:
            wanted = BATCH if limit is None else min(BATCH, limit - count)
            answer = self.client.receive_message(
                QueueUrl=self.dead_url, MaxNumberOfMessages=wanted, MessageAttributeNames=[REASON],
                MessageSystemAttributeNames=[SENT], VisibilityTimeout=60,
            )  # fmt: skip
            if not answer.get("Messages"):
                return
            for message in answer["Messages"]:
                told = message.get("MessageAttributes", {}).get(REASON, {})
                reason = told.get("StringValue") or f"received more than {MOST_RECEIVED} times and never acknowledged"
                sent = message.get("Attributes", {}).get(SENT)
                at = datetime.fromtimestamp(int(sent) / 1000, UTC) if sent else None
                yield DeadLetter(message["Body"], reason, message["MessageId"], at), message["ReceiptHandle"]
                count += 1

    def _send(self, url: str, entries: list[dict[str, Any]]) -> None:
        _in_batches(entries, lambda batch: self.client.send_message_batch(QueueUrl=url, Entries=batch), strict=True)

    def _visible(self, handles: Sequence[str], seconds: int, url: str = "") -> None:
        entries = [{"ReceiptHandle": h, "VisibilityTimeout": seconds} for h in handles]
        _in_batches(entries, lambda batch: self.client.change_message_visibility_batch(QueueUrl=url or self.url, Entries=batch))


def _in_batches(entries: list[dict[str, Any]], call: Callable[[list[dict[str, Any]]], Any], strict: bool = False) -> None:
    """Calls for each ten entries, or as many as are LARGEST bytes together. Unless `strict`, one that fails is left to itself: its
    message is given out again later."""
    start = 0
    while start < len(entries):
        end, size = start, 0
        while end < len(entries) and end - start < BATCH and (end == start or size + _bytes(entries[end]) <= LARGEST):
            size += _bytes(entries[end])
            end += 1
        batch = [{"Id": str(n), **e} for n, e in enumerate(entries[start:end])]
        start = end
        failed = call(batch).get("Failed", [])
        if failed and strict:
            raise CatalogError(f"SQS refused {len(failed)} messages, the first because: {failed[0].get('Message', '')}")


def _bytes(entry: dict[str, Any]) -> int:
    return len(entry.get("MessageBody", "").encode()) + 1200  # and its attributes


def _printable(text: str) -> str:
    """Without control characters, which SQS refuses."""
    return "".join(c if c.isprintable() else " " for c in storable(text))
