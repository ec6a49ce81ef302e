"""Freshness: from a product's change to the version that serves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import FileRef
from serving.contract.manifest import IndexManifest
from serving.contract.segments import read_rows


@dataclass(frozen=True)
class Freshness:
    """`age_s`: now less the change of the newest live product (0 when no product tells when it changed). `p50_s` and `p99_s`: from
    change to version, over the rows of recent deltas; `changes` is how many those are."""

    age_s: float
    p50_s: float
    p99_s: float
    changes: int


@dataclass(frozen=True)
class Delivery:
    """A version and the time (epoch seconds) it became servable."""

    manifest: IndexManifest
    at_s: float


def newest_change_s(updated_at: pa.ChunkedArray, live: np.ndarray) -> float:
    """Time (epoch seconds) of the newest change among the live rows; 0 when unknown."""
    newest = pc.max(updated_at.filter(pa.array(live)))
    return newest.as_py().timestamp() if newest.is_valid else 0.0


def delays_s(versions: Sequence[Delivery], locate: Callable[[FileRef], Path]) -> np.ndarray:
    """Delays (n,) in seconds from changed rows of the versions' own deltas to their version. Rows without a time are skipped."""
    seen: set[str] = set()
    found: list[np.ndarray] = []
    for version in sorted(versions, key=lambda v: v.at_s):
        for segment in version.manifest.segments:
            if segment.kind != "delta" or segment.table.sha256 in seen:
                continue
            seen.add(segment.table.sha256)  # the first version with a segment is the one that brought it
            column = read_rows(locate(segment.table))["updated_at"].drop_null()
            changed = column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() / 1e6
            found.append(version.at_s - changed)
    return np.concatenate(found) if found else np.zeros(0)


def freshness(now_s: float, newest_s: float, delays: np.ndarray) -> Freshness:
    p50, p99 = np.percentile(delays, [50, 99]) if len(delays) else (0.0, 0.0)
    return Freshness(now_s - newest_s if newest_s else 0.0, float(p50), float(p99), len(delays))
