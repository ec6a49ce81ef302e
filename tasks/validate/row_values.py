"""Checks the values of one row of the catalogue, as a person wrote them or a database gave them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.validate.findings import short_name
from tasks.validate.rows import Row
from tasks.validate.snapshot import SnapshotLimits

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "n/a", "#N/A")
FLAGS = ("true", "false", "0", "1")


def out_of_bounds(row: Row, limits: SnapshotLimits) -> Iterator[str]:
    """A sentence for each value of a product that is not what it must be, with the setting that allows it."""
    for name, least, most, setting in (
        ("price", 0.0, limits.max_price, "VITRINE_MAX_PRICE"),
        ("popularity", 0.0, float("inf"), ""),
    ):
        value = row.get(name)
        if value is None or value in NULLS:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            yield f"{name} {value!r} is not a number"
            continue
        if not least <= number <= most:
            bounds = f"{least:g} to {most:g}: {setting}" if setting else f"{least:g} or more"
            yield f"{name} {number:g}, allowed {bounds}"
    for name, most, setting in (
        ("title", limits.longest_title, "VITRINE_MAX_TITLE_LENGTH"), ("image_uri", limits.longest_uri, "VITRINE_MAX_URI_LENGTH"),
    ):  # fmt: skip
        if len(str(row[name] or "")) > most:
            yield f"{short_name(name)} of {len(str(row[name]))} characters, allowed {most}: {setting}"
    steps = row.get("category")
    depth = len(steps if isinstance(steps, list) else [s for s in str(steps or "").split(">") if s.strip()])
    if depth > limits.deepest_category:
        yield f"a category of {depth} steps, allowed {limits.deepest_category}: VITRINE_MAX_CATEGORY_DEPTH"
    for name in ("in_stock", "priority"):
        value = row.get(name)
        if isinstance(value, str) and value not in NULLS and value.strip().lower() not in FLAGS and not _whole_number(value):
            yield f"{name} {value!r} is not one of 1, 0, true, false"
    if row.get("updated_at") is not None:
        when = time_of(row["updated_at"])
        if when is None:
            yield f"updated_at {row['updated_at']!r} is not a time (ISO 8601, such as 2026-11-30 12:00:00)"
        elif when - datetime.now(UTC) > timedelta(days=limits.most_days_ahead):
            yield f"updated_at {row['updated_at']} lies ahead, allowed {limits.most_days_ahead:g} days: VITRINE_MAX_DAYS_AHEAD"


def time_of(value: Any) -> datetime | None:
    """A time that a snapshot would read, in UTC where it has no zone; None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _whole_number(text: str) -> bool:
    return text.strip().lstrip("+-").isdecimal()
