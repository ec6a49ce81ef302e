"""What a set of queries is called in reports, and when one counts as answered."""

from collections.abc import Iterable, Sequence

import numpy as np

from serving.contract.provenance import QuerySet
from tasks.queries.view_store import is_view

PHOTO_DEPTH, VIEW_DEPTH = 10, 1
"""Among how many answers a query's product must be. Views are easier than photos: their Recall@1 lies where the photos' Recall@10
does (docs/decisions/0088), and their Recall@10 is too near 1 to tell two versions apart."""
SYNTHETIC = "synthetic queries"


def query_set(uris: Iterable[str]) -> QuerySet | None:
    """The record of queries by their addresses; None for none."""
    views = [is_view(uri) for uri in uris]
    return QuerySet.of(photos=len(views) - sum(views), synthetic=sum(views))


def describe(queries: QuerySet | None, photos: str = "held-out photos") -> str:
    """A set in words: "296 held-out photos", "200 synthetic queries", or both."""
    if queries is None:
        return f"0 {photos}"
    parts = [f"{n} {what}" for n, what in ((queries.photos, photos), (queries.synthetic, SYNTHETIC)) if n]
    return " and ".join(parts)


def kind_name(queries: QuerySet | None) -> str:
    """What the queries of a set are, without how many."""
    kind = queries.kind if queries else "photos"
    return {"photos": "held-out photos", "synthetic": SYNTHETIC}.get(kind, f"held-out photos and {SYNTHETIC}")


def unless_photos(queries: QuerySet | None) -> str:
    """The queries as the end of a sentence where some are synthetic: ", on 200 synthetic queries"; "" for photos alone."""
    return f", on {describe(queries)}" if queries and queries.synthetic else ""


def tuning_target(target: float, queries: QuerySet | None) -> float:
    """The recall that search parameters are tuned to: where more views than photos are asked, half the loss (docs/decisions/0088)."""
    easy = queries is not None and queries.synthetic > queries.photos
    return 1 - (1 - target) / 2 if easy else target


def measure_name(queries: QuerySet | None) -> str:
    """What the share of answered queries (`hits`) is called."""
    kind = queries.kind if queries else "photos"
    names = {"photos": f"Recall@{PHOTO_DEPTH}", "synthetic": f"Recall@{VIEW_DEPTH}"}
    return names.get(kind, f"Recall@{PHOTO_DEPTH} of photos with Recall@{VIEW_DEPTH} of synthetic queries")


def hits(uris: Sequence[str], ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    """Whether each query (n,) counts as answered, float64: its rank from 1 (0 or less: absent) is within its depth."""
    depth = np.asarray([VIEW_DEPTH if is_view(uri) else PHOTO_DEPTH for uri in uris], np.int64)
    rank = np.asarray(ranks, np.int64)
    return ((rank > 0) & (rank <= depth)).astype(np.float64)
