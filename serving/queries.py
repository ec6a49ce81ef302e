"""From a request to an answer: the work of one search, done in a worker thread on one release."""

import time
from hashlib import sha256

import numpy as np

from serving.cache import Cache
from serving.contract.preprocess import ImageLimits
from serving.features import Features
from serving.models import Coverage, Filter, Result, SearchAnswer, SearchRequest, VersionOf
from serving.ranker import Ranked
from serving.release import Release

SHOWN = ["product_id", "title", "brand", "category", "price", "currency", "in_stock"]
UNIT_TOLERANCE = 1e-2


class QueryError(Exception):
    """A request that cannot be answered as it is; the message says why, `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def search(
    release: Release, request: SearchRequest, photo: bytes | None, limits: ImageLimits, vectors: Cache, request_id: str
) -> SearchAnswer:
    """Answers a search. `photo` holds the image's bytes when the query is one. Raises QueryError or ImageRejected."""
    began = time.perf_counter()
    timings: dict[str, float] = {}
    cached: list[str] = []
    vector, own = _query_vector(release, request, photo, limits, vectors, timings, cached)
    features = release.searcher.features
    allowed = matching(features, request.filter) if request.filter else None
    wanted = request.k + (own is not None)
    answer = release.answer(vector, wanted, request.candidates, allowed, request.user)
    timings |= answer.timings_ms
    results = _results(answer.ranked, features, own, request)
    timings["total"] = 1e3 * (time.perf_counter() - began)
    shards = release.manifest.shards
    return SearchAnswer(
        request_id=request_id,
        version=version_of(release),
        results=results,
        coverage=Coverage(shards_ok=shards, shards_total=shards),
        cached=cached,
        timings_ms={name: round(ms, 3) for name, ms in timings.items()},
    )


def version_of(release: Release) -> VersionOf:
    tower, _, variant = release.manifest.encoder.query.partition(".")
    encoder = release.manifest.encoder.version
    return VersionOf(index=release.version, encoder=encoder, tower=tower, variant=variant, manifest=release.manifest.id)


def matching(features: Features, wanted: Filter) -> np.ndarray:
    """Which rows (n,) bool a filter lets through. A name that occurs nowhere lets nothing through."""
    mask = np.ones(features.rows, bool)
    if wanted.brand:
        mask &= np.isin(features.brand, _codes(features.brands, wanted.brand))
    if wanted.category:
        names = set(wanted.category)
        codes = [n for n, path in enumerate(features.leaves) if names & set(path.split(" > "))]
        mask &= np.isin(features.leaf, codes)
    if wanted.min_price is not None:
        mask &= features.price >= wanted.min_price
    if wanted.max_price is not None:
        mask &= features.price <= wanted.max_price
    if wanted.in_stock is not None:
        mask &= features.in_stock == wanted.in_stock
    return mask


def row_of(features: Features, product_id: str) -> int:
    """The newest row of a product. Raises QueryError(404)."""
    from serving.contract.keys import product_key

    rows = np.flatnonzero(features.key == product_key(product_id))
    if not len(rows):
        raise QueryError(f"product {product_id!r} is not in this index version", 404)
    return int(rows[-1])


def _query_vector(
    release: Release,
    request: SearchRequest,
    photo: bytes | None,
    limits: ImageLimits,
    vectors: Cache,
    timings: dict[str, float],
    cached: list[str],
) -> tuple[np.ndarray, str | None]:
    """The unit query vector (d,), and the product it is of when that one is not to be in the answer."""
    if request.product_id is not None:
        return release.searcher.vector(row_of(release.searcher.features, request.product_id)), request.product_id
    if request.vector is not None:
        return _checked(np.array(request.vector, np.float32), release.searcher.dim), None
    data = photo if photo is not None else request.image_bytes()
    key = f"{release.query.fingerprint}:{sha256(data).hexdigest()}"
    kept = vectors.get(key)
    if kept is not None:
        cached.append("embedding")
        return kept, None
    vector, spent = release.encode_photo(data, limits)
    timings |= spent
    vectors.put(key, vector)
    return vector, None


def _checked(vector: np.ndarray, dim: int) -> np.ndarray:
    if vector.shape != (dim,):
        raise QueryError(f"the vector has {vector.size} numbers, this index version takes {dim}")
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or abs(length - 1) > UNIT_TOLERANCE:
        raise QueryError(f"the vector has length {length:.3f}; it must be of unit length")
    return vector / length


def _results(ranked: Ranked, features: Features, own: str | None, request: SearchRequest) -> list[Result]:
    rows = features.take(ranked.rows, SHOWN)
    results = []
    for place, row in enumerate(rows):
        if row["product_id"] == own:
            continue
        reasons = {n: round(float(t[place]), 5) for n, t in ranked.terms.items()} if request.explain else None
        price = row["price"] if row["price"] == row["price"] else None
        results.append(
            Result(
                score=round(float(ranked.score[place]), 6),
                similarity=round(float(ranked.similarity[place]), 6),
                image_url=f"/v1/images/{row['product_id']}",
                reasons=reasons,
                **(row | {"price": price, "category": row["category"] or []}),
            )
        )
    return results[: request.k]


def _codes(names: list[str], wanted: list[str]) -> list[int]:
    return [n for n, name in enumerate(names) if name in set(wanted)]
