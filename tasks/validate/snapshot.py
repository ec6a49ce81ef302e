"""Validates a snapshot, by itself and against the previous one."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.schema import EPOCH
from tasks.catalog.snapshot import Snapshot, product_batches, unusable_rows
from tasks.settings import Settings
from tasks.validate.expectations import Check, Validation, run_checks

SAMPLE_ROWS = 100_000
"""Rows the row-level expectations show, taken evenly; every row is looked at, and those out of bounds are always among them."""
SHOWN_BAD = 1_000
COLUMNS = ["product_id", "key", "title", "category", "price", "popularity", "image_uri", "updated_at"]


SETTINGS = {
    "title_length": "VITRINE_MAX_TITLE_LENGTH", "uri_length": "VITRINE_MAX_URI_LENGTH", "price": "VITRINE_MAX_PRICE",
    "category_depth": "VITRINE_MAX_CATEGORY_DEPTH",
}  # fmt: skip
"""Which setting moves the upper bound of a number about a product."""
WORDS = {
    "product_id": "the product's id", "title": "the title", "image_uri": "the picture's address", "price": "the price",
    "title_length": "the title's number of characters", "uri_length": "the number of characters of the picture's address",
    "category_depth": "the number of steps in the category", "popularity": "the popularity", "rows": "the number of products",
    "odd_uri_share": "the share of pictures whose address is of no known kind",
    "newest_change_days_ago": "the age in days of the newest change",
    "dropped_share": "the share by which the catalogue shrank since the last snapshot",
    "gone_share": "the share of the last snapshot's products that are gone",
    "days_older_than_last": "how many days older the newest change is than in the last snapshot",
}  # fmt: skip
"""What the checked columns hold."""


@dataclass(frozen=True)
class SnapshotLimits:
    """Thresholds of the snapshot checks."""

    most_dropped: float = 0.2
    """Share of products that may be gone since the last snapshot: more is rather a broken export than a smaller shop."""
    most_odd_uris: float = 0.02
    """Share of pictures whose uri is of no known kind; like those in quarantine."""
    most_unusable_rows: float = 0.02
    """Share of the catalogue's rows that cannot be used; under the same limit as pictures in quarantine."""
    max_price: float = 1e7
    deepest_category: int = 12
    longest_title: int = 2000
    longest_uri: int = 4000
    most_days_ahead: float = 1.0
    """How far in the future the newest change may lie: clocks differ, by less than a day."""
    max_age_days: float = 0.0
    """0: any age will do."""
    text_only: bool = False
    """Whether a product may have no picture: its address is then ""."""

    @classmethod
    def from_settings(cls, chosen: Settings) -> "SnapshotLimits":
        """The limits from the settings."""
        return cls(
            most_dropped=chosen.most_dropped, most_odd_uris=chosen.most_quarantined,
            most_unusable_rows=chosen.most_quarantined, max_price=chosen.max_price,
            deepest_category=chosen.max_category_depth, longest_title=chosen.max_title_length, longest_uri=chosen.max_uri_length,
            most_days_ahead=chosen.max_days_ahead, max_age_days=chosen.catalog_max_age_days, text_only=chosen.text_only,
        )  # fmt: skip

    @property
    def bounds(self) -> dict[str, tuple[float, float | None]]:
        """Minimum and maximum of each numeric column; a price may be missing."""
        return {
            "title_length": (1, self.longest_title), "uri_length": (0 if self.text_only else 1, self.longest_uri),
            "price": (0, self.max_price), "category_depth": (0, self.deepest_category), "popularity": (0, None),
        }  # fmt: skip


@dataclass
class Facts:
    """Aggregates over all rows of a snapshot."""

    keys: np.ndarray
    newest: datetime | None
    odd_uris: int
    odd_ids: list[str]
    rows: pd.DataFrame


def check_snapshot(
    snapshot: Snapshot, previous: Snapshot | None, docs: Path, limits: SnapshotLimits, now: datetime | None = None
) -> Validation:
    """Checks a snapshot by itself and against the previous one. Failures are in the result, with sample ids."""
    found = read_facts(snapshot, limits)
    facts = {
        "rows": len(found.keys), "distinct_ids": len(np.unique(found.keys)), "promised_rows": snapshot.rows,
        "odd_uri_share": found.odd_uris / max(len(found.keys), 1), "orphan_photos": snapshot.orphan_photos,
        "unusable_row_share": snapshot.quarantined_rows / max(len(found.keys) + snapshot.quarantined_rows, 1),
    }  # fmt: skip
    checks = [
        *(
            Check("rows", "ExpectColumnValuesToNotBeNull", {"column": name}, words=WORDS[name])
            for name in ("product_id", "title", "image_uri")
        ),
        Check("rows", "ExpectColumnValuesToBeUnique", {"column": "product_id"}, words=WORDS["product_id"]),
        *(_between("rows", name, least, most, SETTINGS.get(name, "")) for name, (least, most) in limits.bounds.items()),
        Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": "rows", "column_B": "promised_rows"}),
        Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": "rows", "column_B": "distinct_ids"}),
        _between("facts", "rows", 1, None),
        _between("facts", "odd_uri_share", 0, limits.most_odd_uris, "VITRINE_MOST_QUARANTINED"),
        _between("facts", "unusable_row_share", 0, limits.most_unusable_rows, "VITRINE_MOST_QUARANTINED"),
        _between("facts", "orphan_photos", 0, None),  # any number: the data docs show it
    ]
    also = (
        [f"pictures with an address of no known kind: {', '.join(found.odd_ids)}"]
        if facts["odd_uri_share"] > limits.most_odd_uris
        else []
    )
    also += [snapshot.orphans] if snapshot.orphans else []
    if snapshot.quarantined_rows:
        first = "; ".join(row["sentence"] for row in unusable_rows(snapshot.uri)[:5])
        also.append(f"{snapshot.quarantined_rows} rows of the catalogue cannot be used: {first}")
    if snapshot.pictures_left_out:
        also.append(f"{snapshot.pictures_left_out} pictures are left out: VITRINE_MAX_PICTURES, VITRINE_MAX_URI_LENGTH")
    if snapshot.titles:
        also.append(f"{snapshot.titles} products have no picture and are found by words alone: VITRINE_TEXT_ONLY")
    if found.newest is not None:
        facts["newest_change_days_ago"] = ((now or datetime.now(UTC)) - found.newest).total_seconds() / 86400
        setting = "VITRINE_MAX_DAYS_AHEAD" if facts["newest_change_days_ago"] < 0 else "VITRINE_CATALOG_MAX_AGE_DAYS"
        checks.append(_between("facts", "newest_change_days_ago", -limits.most_days_ahead, limits.max_age_days or None, setting))
    if previous is not None:
        compared, gone = _compared(previous, found)
        facts |= compared
        checks.append(_between("facts", "dropped_share", None, limits.most_dropped, "VITRINE_MOST_DROPPED"))
        checks.append(_between("facts", "gone_share", 0, limits.most_dropped, "VITRINE_MOST_DROPPED"))
        if "days_older_than_last" in compared:
            checks.append(_between("facts", "days_older_than_last", None, 0))
        if compared["gone_share"] > limits.most_dropped:
            also.append(f"missing now: {', '.join(gone)}; raise VITRINE_MOST_DROPPED for one run if that is right")
    return run_checks("snapshot", {"rows": found.rows, "facts": pd.DataFrame([facts])}, checks, docs, "product_id", also)


def read_facts(snapshot: Snapshot, limits: SnapshotLimits) -> Facts:
    """One pass over all rows; keeps 8 bytes per product, rows out of bounds (up to SHOWN_BAD) and an even sample."""
    every = max(1, -(-snapshot.rows // SAMPLE_ROWS))
    keys: list[np.ndarray] = []
    shown: list[pa.Table] = []
    odd_ids: list[str] = []
    newest, odd, bad, start = EPOCH, 0, 0, 0
    for batch in product_batches(snapshot.uri, COLUMNS):
        table = _measured(pa.Table.from_batches([batch]))
        keys.append(batch["key"].to_numpy())
        newest = max(newest, pc.max(batch["updated_at"]), key=lambda t: t.value or 0)
        unknown = table.filter(pc.invert(table["uri_known"]))["product_id"]
        odd += len(unknown)
        odd_ids += unknown.slice(0, 5 - len(odd_ids)).to_pylist()
        wrong = np.flatnonzero(_out_of_bounds(table, limits))[: SHOWN_BAD - bad]
        bad += len(wrong)
        even = np.arange(-start % every, len(table), every)
        shown.append(table.take(pa.array(np.union1d(even, wrong))).drop_columns(["key", "category", "updated_at"]))
        start += len(table)
    rows = pa.concat_tables(shown).to_pandas() if shown else pd.DataFrame(columns=[*COLUMNS, *limits.bounds])
    moment = None if newest.equals(EPOCH) else newest.as_py()
    return Facts(np.concatenate(keys) if keys else np.zeros(0, np.int64), moment, odd, odd_ids, rows)


def _measured(table: pa.Table) -> pa.Table:
    """Adds lengths and depths that have bounds, and whether the picture's uri has a readable scheme."""
    uri = table["image_uri"]
    known = pc.or_(pc.invert(pc.match_substring(uri, "://")), pc.match_substring_regex(uri, "(?i)^(https?|s3|file)://."))
    added = {
        "title_length": pc.utf8_length(table["title"]), "uri_length": pc.utf8_length(uri), "uri_known": pc.fill_null(known, False),
        "category_depth": pc.list_value_length(table["category"]),
    }  # fmt: skip
    for name, column in added.items():
        table = table.append_column(name, column)
    return table


def _out_of_bounds(table: pa.Table, limits: SnapshotLimits) -> np.ndarray:
    wrong = np.zeros(len(table), bool)
    for name, (least, most) in limits.bounds.items():
        values = table[name].to_numpy().astype(np.float64)  # a missing price is NaN and out of no bounds
        wrong |= (values < least) | (values > (np.inf if most is None else most))
    return wrong


def _compared(previous: Snapshot, now: Facts) -> tuple[dict[str, float], list[str]]:
    """How much smaller and older the catalogue became, with sample ids of lost products."""
    keys, newest = [], EPOCH
    for batch in product_batches(previous.uri, ["key", "updated_at"]):
        keys.append(batch["key"].to_numpy())
        newest = max(newest, pc.max(batch["updated_at"]), key=lambda t: t.value or 0)
    before = np.concatenate(keys)
    gone = np.setdiff1d(before, now.keys, assume_unique=True)
    facts = {"dropped_share": 1 - len(now.keys) / len(before), "gone_share": len(gone) / len(before)}
    if now.newest is not None and not newest.equals(EPOCH):
        facts["days_older_than_last"] = (newest.as_py() - now.newest).total_seconds() / 86400
    return facts, product_ids(previous, gone, 10) if len(gone) else []


def product_ids(snapshot: Snapshot, keys: np.ndarray, most: int) -> list[str]:
    """Ids of some of these products, ordered; "key <n>" for one not in the snapshot."""
    found: list[str] = []
    for batch in product_batches(snapshot.uri, ["product_id", "key"]):
        found += batch["product_id"].filter(pa.array(np.isin(batch["key"].to_numpy(), keys))).to_pylist()
        if len(found) >= most:
            break
    return found[:most] or [f"key {key}" for key in keys[:most].tolist()]


def _between(frame: str, column: str, least: float | None, most: float | None, setting: str = "") -> Check:
    limits = {n: v for n, v in (("min_value", least), ("max_value", most)) if v is not None}
    return Check(frame, "ExpectColumnValuesToBeBetween", {"column": column} | limits, setting, words=WORDS.get(column, ""))
