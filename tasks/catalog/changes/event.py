"""A change event: format, parsing, and the total order of events about one product.

An upsert carries the whole product, so that the same messages always give the same index version, whatever the catalogue says by
the time they are read (docs/decisions/0020).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

UPSERT, DELETE = "upsert", "delete"
AHEAD = timedelta(days=1)
"""How far a change's time may lie in the future: a wrong clock would otherwise win over everything that follows."""
TEXT = ("title", "description", "brand", "currency", "image_uri")
FLAGS = ("in_stock", "priority")


class MalformedEvent(Exception):
    """A message that is not a valid event; the reason goes to the dead letters with it."""


@dataclass(frozen=True)
class Event:
    """One change. `product` is the whole row of an upsert (snapshot columns without product_id), {} for a delete."""

    kind: str
    product_id: str
    updated_at: datetime
    product: Mapping[str, Any]

    @property
    def priority(self) -> bool:
        """Whether it is taken first: products marked by the shop, and all deletes."""
        return self.kind == DELETE or bool(self.product.get("priority"))

    @property
    def text(self) -> str:
        """The event as JSON with sorted keys, so that equal events have equal texts."""
        record: dict[str, Any] = {"kind": self.kind, "product_id": self.product_id, "updated_at": format_time(self.updated_at)}
        if self.kind == UPSERT:
            record["product"] = dict(self.product)
        return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)

    @property
    def digest(self) -> str:
        """Content hash; breaks ties between events of the same time."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def order(self) -> tuple[datetime, bool, str]:
        """Sort key: of two events about one product the greater wins, in whatever order they arrive."""
        return self.updated_at, self.kind == DELETE, self.digest


def upsert(product_id: str, updated_at: datetime, product: Mapping[str, Any]) -> Event:
    """An upsert event. Raises MalformedEvent when `product` is not a valid product."""
    return Event(UPSERT, product_id, updated_at, _product(product))


def delete(product_id: str, updated_at: datetime) -> Event:
    """A delete event."""
    return Event(DELETE, product_id, updated_at, {})


def read_event(text: str, now: datetime) -> Event:
    """Parses a message. Raises MalformedEvent naming what is wrong."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise MalformedEvent(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise MalformedEvent(f"a JSON object is expected, not {type(record).__name__}")
    kind, product_id = record.get("kind"), record.get("product_id")
    if kind not in (UPSERT, DELETE):
        raise MalformedEvent(f"kind is {kind!r}; expected upsert or delete")
    if not isinstance(product_id, str) or not product_id:
        raise MalformedEvent(f"product_id is {product_id!r}; expected a text")
    updated_at = _time(record.get("updated_at"))
    if updated_at > now + AHEAD:
        raise MalformedEvent(f"updated_at {format_time(updated_at)} lies in the future; the sender's clock is wrong")
    if kind == DELETE:
        return delete(product_id, updated_at)
    if not isinstance(record.get("product"), dict):
        raise MalformedEvent("an upsert carries the whole product as an object `product`; there is none")
    return upsert(product_id, updated_at, record["product"])


def event_time(text: str) -> datetime | None:
    """The time in a message, valid or not; None when it has none."""
    try:
        return _time(json.loads(text).get("updated_at"))
    except (ValueError, AttributeError, MalformedEvent):
        return None


def format_time(at: datetime) -> str:
    """A time in the format of events: UTC with microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _time(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise MalformedEvent(f"updated_at is {value!r}; expected a time like 2026-11-25T02:00:00.000000Z") from None


def _product(row: Mapping[str, Any]) -> dict[str, Any]:
    """A product's columns cast to snapshot types; unknown columns are kept as they are."""
    product = {("image_uri" if name == "image" else name): value for name, value in row.items()}
    for name in ("product_id", "key", "updated_at"):  # the event itself says these
        product.pop(name, None)
    for name in ("title", "image_uri"):
        if not isinstance(product.get(name), str) or not product[name]:
            raise MalformedEvent(f"the product has no {name.removesuffix('_uri')}; every product needs title and image")
    for name in TEXT:
        if name in product and product[name] is not None and not isinstance(product[name], str):
            raise MalformedEvent(f"{name} is {product[name]!r}; expected a text")
    for name in ("price", "popularity"):
        if name in product:
            product[name] = _number(name, product[name])
    for name in FLAGS:
        if name in product:
            product[name] = _flag(name, product[name])
    if "category" in product:
        product["category"] = _category(product["category"])
    return product


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise MalformedEvent(f"{name} is {value!r}; expected a number")
    return float(value)


def _flag(name: str, value: Any) -> bool | None:
    if value in (True, False, None):  # 1 and 0 as well: SQLite has no other flags
        return None if value is None else bool(value)
    raise MalformedEvent(f"{name} is {value!r}; expected true or false")


def _category(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(">") if part.strip()]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    raise MalformedEvent(f"category is {value!r}; expected a list of texts, or a text like 'a > b'")


def _plain(value: Any) -> str:
    return format_time(value) if isinstance(value, datetime) else str(value)
