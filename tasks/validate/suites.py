"""The suites: a snapshot before it is embedded, and its embeddings before they are indexed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.catalog.snapshot import Snapshot, product_batches, product_table
from tasks.embed.job import Embedded
from tasks.errors import ValidationFailed
from tasks.index.vectors import shard_batches
from tasks.validate.expectations import Check, Validation, run_checks

SAMPLE_ROWS = 200_000
"""Rows the row-level expectations look at; counts, uniqueness and norms are exact over all of them."""
MAX_PRICE = 1e7
MOST_DROPPED = 0.2
"""A catalogue that lost more than this share of its products since the last one is refused: more likely a broken export."""
MOST_QUARANTINED = 0.02


def validate_snapshot(snapshot: Snapshot, previous: Snapshot | None, docs: Path) -> Validation:
    """Checks a snapshot. Raises ValidationFailed naming each failed expectation, what was observed, and sample ids."""
    rows = _sampled(snapshot)
    rows["category_depth"] = rows["category"].map(len)
    rows["title_length"] = rows["title"].str.len()
    ids = product_table(snapshot.uri, ["product_id"])["product_id"]
    dropped, gone = _dropped(previous, ids)
    facts = pd.DataFrame([{"rows": len(ids), "distinct_ids": pc.count_distinct(ids).as_py(), "dropped_share": dropped}])
    checks = [
        Check("rows", "ExpectColumnValuesToNotBeNull", {"column": "product_id"}),
        Check("rows", "ExpectColumnValuesToBeUnique", {"column": "product_id"}),
        Check("rows", "ExpectColumnValueLengthsToBeBetween", {"column": "title", "min_value": 1, "max_value": 2000}),
        Check("rows", "ExpectColumnValueLengthsToBeBetween", {"column": "image_uri", "min_value": 1, "max_value": 4000}),
        Check("rows", "ExpectColumnValuesToBeBetween", {"column": "price", "min_value": 0, "max_value": MAX_PRICE}),
        Check("rows", "ExpectColumnValuesToBeBetween", {"column": "category_depth", "min_value": 0, "max_value": 12}),
        Check("rows", "ExpectColumnValuesToBeBetween", {"column": "popularity", "min_value": 0}),
        Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": "rows", "column_B": "distinct_ids"}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "rows", "min_value": 1}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "dropped_share", "min_value": 0, "max_value": MOST_DROPPED}),
    ]
    shown = rows.drop(columns=["category", "description"])
    result = run_checks("snapshot", {"rows": shown, "facts": facts}, checks, docs, "product_id")
    return _or_raise(result, f"; missing now: {', '.join(gone)}" if dropped > MOST_DROPPED else "")


def validate_embeddings(embedded: Embedded, snapshot: Snapshot, docs: Path) -> Validation:
    """Checks a run's vectors, all of them. Raises ValidationFailed like `validate_snapshot`."""
    facts = _vector_facts(embedded) | {
        "catalogue": snapshot.rows,
        "accounted": embedded.embedded + embedded.quarantined,
        "embedded": embedded.embedded,
        "quarantined_share": embedded.quarantined / max(snapshot.rows, 1),
    }
    checks = [
        Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": "catalogue", "column_B": "accounted"}),
        Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": "embedded", "column_B": "vectors"}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "not_finite", "max_value": 0}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "least_norm", "min_value": 0.99}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "greatest_norm", "max_value": 1.01}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "constant_dimensions", "max_value": 0}),
        Check("facts", "ExpectColumnValuesToBeBetween", {"column": "quarantined_share", "max_value": MOST_QUARANTINED}),
    ]
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(embedded.reasons.items()))
    result = run_checks("embeddings", {"facts": pd.DataFrame([facts])}, checks, docs)
    return _or_raise(result, f"; in quarantine: {reasons}" if reasons else "")


def _or_raise(result: Validation, also: str) -> Validation:
    if not result.passed:
        raise ValidationFailed(f"{result.name}: {'; '.join(result.failures)}{also}. Details: {result.docs}")
    return result


def _sampled(snapshot: Snapshot) -> pd.DataFrame:
    """About SAMPLE_ROWS rows, taken evenly."""
    every = max(1, -(-snapshot.rows // SAMPLE_ROWS))
    columns = ["product_id", "title", "description", "category", "price", "popularity", "image_uri"]
    parts, start = [], 0
    for batch in product_batches(snapshot.uri, columns):
        places = np.arange(-start % every, batch.num_rows, every)
        parts.append(pa.Table.from_batches([batch]).take(pa.array(places)))
        start += batch.num_rows
    return pa.concat_tables(parts).to_pandas()


def _dropped(previous: Snapshot | None, ids: pa.ChunkedArray) -> tuple[float, list[str]]:
    """The share of the previous snapshot's products that are gone, and some of their ids."""
    if previous is None:
        return 0.0, []
    before = product_table(previous.uri, ["product_id"])["product_id"]
    gone = before.filter(pc.invert(pc.is_in(before, ids.combine_chunks())))
    return len(gone) / max(len(before), 1), gone.slice(0, 10).to_pylist()


def _vector_facts(embedded: Embedded) -> dict[str, float]:
    count = bad = 0
    least, greatest = np.inf, -np.inf
    total = np.zeros(embedded.dim)
    squares = np.zeros(embedded.dim)
    for shard in range(embedded.shards):
        for _, vectors in shard_batches(embedded.vectors_uri, shard, unit=False):
            finite = np.isfinite(vectors).all(axis=1)
            bad += int((~finite).sum())
            good = vectors[finite].astype(np.float64)
            norms = np.linalg.norm(good, axis=1)
            count += len(vectors)
            least, greatest = min(least, norms.min(initial=np.inf)), max(greatest, norms.max(initial=-np.inf))
            total += good.sum(axis=0)
            squares += (good**2).sum(axis=0)
    spread = squares / max(count, 1) - (total / max(count, 1)) ** 2
    constant = int((spread < 1e-10).sum()) if count > 1 else 0
    return {"vectors": count, "not_finite": bad, "least_norm": least, "greatest_norm": greatest, "constant_dimensions": constant}
