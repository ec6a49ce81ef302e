"""A change event: format, parsing, and the total order of events about one product.

An upsert carries the whole product, so that the same messages always give the same index version, whatever the catalogue says by
the time they are read (docs/decisions/0020). Its values are read by the one table of types, tasks/catalog/values.py.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.catalog.product_pictures import IMAGES, PICTURE_LISTS, PICTURE_ROWS, TOO_LONG, choose_pictures
from tasks.catalog.schema import ALIASES, DEFAULT_LIMITS, KINDS, LARGEST_FLOAT32, RowLimits, readable
from tasks.catalog.values import ValueProblem, named, read, shown, text, time

UPSERT, DELETE = "upsert", "delete"
AHEAD = timedelta(days=1)
"""How far a change's time may lie in the future: a wrong clock would otherwise win over everything that follows."""
LONGEST_MESSAGE = 4_000_000
"""Most characters of a message: several times what a product with the longest texts has."""
LONGEST_ID = 1000


class MalformedEvent(Exception):
    """A message that is not a valid event; the reason goes to the dead letters with it."""


class PictureMissing(MalformedEvent):
    """A product that names no picture, where every product needs one."""


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


def upsert(product_id: str, updated_at: datetime, product: Mapping[str, Any], limits: RowLimits = DEFAULT_LIMITS) -> Event:
    """An upsert event. Raises MalformedEvent when `product` is not a valid product."""
    return Event(UPSERT, product_id, updated_at, _product(product, limits))


def delete(product_id: str, updated_at: datetime) -> Event:
    """A delete event."""
    return Event(DELETE, product_id, updated_at, {})


def read_event(message: str, now: datetime, limits: RowLimits = DEFAULT_LIMITS) -> Event:
    """Parses a message. Raises MalformedEvent naming what is wrong, whatever the message holds."""
    try:
        return _read_event(message, now, limits)
    except RecursionError:
        raise MalformedEvent("objects and lists are nested too deeply") from None


def _read_event(message: str, now: datetime, limits: RowLimits) -> Event:
    if len(message) > LONGEST_MESSAGE:
        raise MalformedEvent(f"a message of {len(message)} characters; at most {LONGEST_MESSAGE} are accepted")
    try:
        record = json.loads(message)
    except ValueError as error:
        raise MalformedEvent(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise MalformedEvent(f"a JSON object is expected, not {named(record)}")
    kind, product_id = record.get("kind"), record.get("product_id")
    if kind not in (UPSERT, DELETE):
        raise MalformedEvent(f"kind is {shown(kind)}; expected upsert or delete")
    product_id = _column("product_id", product_id) if isinstance(product_id, str | int | float) else None
    if not product_id or len(product_id) > LONGEST_ID:
        raise MalformedEvent(f"product_id is {shown(record.get('product_id'))}; expected a text of 1 to {LONGEST_ID} characters")
    updated_at = _time(record.get("updated_at"))
    if updated_at > now + AHEAD:
        raise MalformedEvent(f"updated_at {format_time(updated_at)} lies in the future; the sender's clock is wrong")
    if kind == DELETE:
        return delete(product_id, updated_at)
    if not isinstance(record.get("product"), dict):
        raise MalformedEvent("an upsert carries the whole product as an object `product`; there is none")
    try:
        event = upsert(product_id, updated_at, record["product"], limits)
    except PictureMissing:
        if record["product"].get(PICTURE_ROWS) != []:
            raise
        # Its table of pictures was asked and has none: a snapshot sets such a row aside, so the product is none until one comes.
        return delete(product_id, updated_at)
    try:
        event.text.encode()
    except UnicodeEncodeError:
        raise MalformedEvent("the product holds half a character (a lone surrogate)") from None
    return event


def event_time(message: str) -> datetime | None:
    """The time in a message, valid or not; None when it has none."""
    try:
        return _time(json.loads(message).get("updated_at"))
    except (ValueError, AttributeError, MalformedEvent, RecursionError):
        return None


def format_time(at: datetime) -> str:
    """A time in the format of events: UTC with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(value: Any) -> datetime:
    try:
        found = time(value) if isinstance(value, str) else None
    except ValueProblem as problem:
        raise MalformedEvent(f"updated_at {problem}") from None
    if found is None:
        raise MalformedEvent(f"updated_at is {shown(value)}; expected a time like 2026-11-25T02:00:00.000000Z")
    return found


def _product(row: Mapping[str, Any], limits: RowLimits) -> dict[str, Any]:
    """A product's columns as a snapshot's; the shop's own columns are kept as they are."""
    product = {}
    for given, value in row.items():
        name = ALIASES[given] if given in ALIASES and ALIASES[given] not in row else given
        if name in PICTURE_LISTS and not isinstance(value, str | list):
            continue  # a snapshot leaves such a column out
        if name not in ("product_id", "key", "updated_at"):  # the event itself says these
            product[name] = _column(name, value) if name in KINDS else value
    _take_pictures(product, limits)
    for name in ("title", "image_uri"):
        if not product.get(name) and name in limits.required:
            error = PictureMissing if name == "image_uri" else MalformedEvent
            raise error(f"the product has no {readable(name)}; every product needs title and image")
    product["image_uri"] = product.get("image_uri") or ""
    _check_bounds(product, limits)
    return product


def _take_pictures(product: dict[str, Any], limits: RowLimits) -> None:
    """Main and further pictures as a snapshot has them; without further ones there is no IMAGES."""
    listed = [uri for name in PICTURE_LISTS for uri in product.pop(name, ())]
    if listed:
        main, further, left_out = choose_pictures(
            product.get("image_uri") or "", listed, limits.longest_uri, limits.most_pictures
        )
        if left_out and not main:
            raise MalformedEvent(f"image: {TOO_LONG.format(limits.longest_uri)}")
        product |= {"image_uri": main} | ({IMAGES: further} if further else {})


def _column(name: str, value: Any) -> Any:
    try:
        return read(value, KINDS[name])
    except ValueProblem as problem:
        raise MalformedEvent(f"{readable(name)} {problem}") from None


def _check_bounds(product: Mapping[str, Any], limits: RowLimits) -> None:
    """Raises MalformedEvent for what a snapshot would set aside."""
    sizes = {
        "title": len(product["title"]),
        "image_uri": len(product["image_uri"]),
        "category": len(product.get("category") or []),
    }
    bounds: dict[str, tuple[float, float]] = {
        "title": (1, limits.longest_title), "image_uri": (0, limits.longest_uri), "category": (0, limits.deepest_category),
        "price": (0, limits.max_price), "popularity": (0, LARGEST_FLOAT32),
    }  # fmt: skip
    for name, (least, most) in bounds.items():
        value = sizes.get(name, product.get(name))
        if value is not None and not least <= value <= most:
            what = "length" if name in sizes else "value"
            raise MalformedEvent(f"{readable(name)}: {what} {value:g}, allowed {least:g} to {most:g}")


def _plain(value: Any) -> str:
    return format_time(value) if isinstance(value, datetime) else (text(value) or "")
