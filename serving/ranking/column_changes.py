"""Columns that filters meet as another kind in one index version than in the one before it."""

from serving.ranking.features import Features, Kind
from serving.ranking.filters import FilterError

KINDS: dict[Kind | None, str] = {
    "text": "text", "names": "a list of names", "number": "a number", "flag": "true or false", "time": "a time", None: "not there",
}  # fmt: skip


def column_changes(before: Features, after: Features) -> str:
    """The columns of `before` that are of another kind in `after`, or gone, as one sentence; "" for none."""
    changed = [
        f"{name} was {KINDS[before.kind(name)]} and is {KINDS[after.kind(name)]} now"
        for name in before.filterable_columns()
        if after.kind(name) != before.kind(name)
    ]
    return f"columns that filters meet changed: {', '.join(changed)}" if changed else ""


def with_change(error: FilterError, version: str, features: Features, other: str, other_features: Features) -> FilterError:
    """The error of a filter on `version`, with the kind that its column has in the `other` version, where that differs."""
    kind, was = features.kind(error.column), other_features.kind(error.column)
    if was is None or was == kind:
        return error
    return FilterError(
        f"{error}; in index version {version} the column is {KINDS[kind]}, in version {other} it was {KINDS[was]}", error.column
    )
