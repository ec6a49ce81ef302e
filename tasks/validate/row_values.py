"""Checks the values of one row of the catalogue, as a person wrote them or a database gave them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.catalog.product_pictures import PICTURE_LISTS
from tasks.catalog.schema import KINDS
from tasks.catalog.values import ValueProblem, read, shown
from tasks.validate.rows import Row
from tasks.validate.snapshot import SnapshotLimits


def out_of_bounds(row: Row, limits: SnapshotLimits, picture: str) -> Iterator[str]:
    """A sentence for each value of a product that is not what it must be, with the setting that allows it.

    `picture` is how the catalogue names its column of pictures.
    """
    values: dict[str, Any] = {}
    written = {"image_uri": picture}
    for name, kind in KINDS.items():
        if name in PICTURE_LISTS and not isinstance(row.get(name), str | list):
            continue  # a column of another type is left out as a whole
        try:
            values[name] = read(row.get(name), kind)
        except ValueProblem as problem:
            yield f"{written.get(name, name)} {problem}"
    for name, most, setting in (("price", limits.max_price, "VITRINE_MAX_PRICE"), ("popularity", float("inf"), "")):
        number = values.get(name)
        if number is not None and not 0 <= number <= most:
            bounds = f"0 to {most:g}: {setting}" if setting else "0 or more"
            yield f"{name} {number:g}, allowed {bounds}"
    for name, most, setting in (
        ("title", limits.longest_title, "VITRINE_MAX_TITLE_LENGTH"), ("image_uri", limits.longest_uri, "VITRINE_MAX_URI_LENGTH"),
    ):  # fmt: skip
        if len(values.get(name) or "") > most:
            yield f"{written.get(name, name)} of {len(values[name])} characters, allowed {most}: {setting}"
    depth = len(values.get("category") or [])
    if depth > limits.deepest_category:
        yield f"a category of {depth} steps, allowed {limits.deepest_category}: VITRINE_MAX_CATEGORY_DEPTH"
    when = values.get("updated_at")
    if when is not None and when - datetime.now(UTC) > timedelta(days=limits.most_days_ahead):
        yield f"updated_at {shown(str(row['updated_at']))} lies ahead, allowed {limits.most_days_ahead:g} days: VITRINE_MAX_DAYS_AHEAD"


def time_of(value: Any) -> datetime | None:
    """A time that a snapshot would read, in UTC where it has no zone; None for anything else."""
    try:
        found = read(value, "time")
    except ValueProblem:
        return None
    return found if isinstance(found, datetime) else None
