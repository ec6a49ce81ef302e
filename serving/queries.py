"""From a request to an answer: the work of one search, done in a worker thread on one release."""

import time
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote

import numpy as np

from serving.cache import Cache, Caches
from serving.contract.keys import product_key
from serving.contract.preprocess import ImageLimits
from serving.features import Features
from serving.models import Coverage, Filter, Result, SearchAnswer, SearchRequest, VersionOf
from serving.ranker import Ranked
from serving.release import Release
from serving.searcher import Found, Searcher

SHOWN = ["product_id", "title", "brand", "category", "price", "currency", "in_stock"]
UNIT_TOLERANCE = 1e-2


class QueryError(Exception):
    """A request that cannot be answered as it is; the message says why, `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Query:
    """What is asked, before anything is computed: the photo's bytes (None: product or vector), and a key for caches.

    `key` names the query and everything else that the answer depends on besides the versions.
    """

    request: SearchRequest
    photo: bytes | None
    source: str
    key: str

    @classmethod
    def of(cls, request: SearchRequest, photo: bytes | None) -> "Query":
        """Raises ValueError when the photo in the request is not base64."""
        if photo is None and request.image is not None:
            photo = request.image_bytes()
        if photo is not None:
            source = "photo:" + sha256(photo).hexdigest()
        elif request.product_id is not None:
            source = "product:" + request.product_id
        else:
            source = "vector:" + sha256(np.array(request.vector, np.float64).tobytes()).hexdigest()
        rest = request.model_dump_json(exclude={"image", "vector", "product_id", "user"})
        return cls(request, photo, source, f"{source}|{rest}")

    @property
    def personal(self) -> bool:
        return self.request.user is not None


def etag(release: Release, query: Query) -> str:
    """Names an answer that is not personal: the same version asked the same gives the same."""
    return '"' + sha256(f"{release.identity}|{query.key}".encode()).hexdigest()[:32] + '"'


def search(release: Release, query: Query, limits: ImageLimits, caches: Caches, request_id: str) -> SearchAnswer:
    """Answers a search from one release throughout. Raises QueryError or ImageRejected."""
    began = time.perf_counter()
    request = query.request
    kept = None if query.personal else caches.response.get(f"{release.identity}|{query.key}")
    if kept is not None:
        spent = {"total": round(1e3 * (time.perf_counter() - began), 3)}
        answer: SearchAnswer = kept.model_copy(update={"request_id": request_id, "cached": ["response"], "timings_ms": spent})
        return answer
    timings: dict[str, float] = {}
    cached: list[str] = []
    vector, own = _query_vector(release, query, limits, caches.embedding, timings, cached)
    retrieving = time.perf_counter()
    found = _candidates(release, query, vector, request.k + (own is not None), caches.candidates, cached)
    ranking = time.perf_counter()
    ranked = release.rank(found, request.k + (own is not None), request.user)
    shaping = time.perf_counter()
    results = _results(ranked, release.searcher.features, own, request)
    done = time.perf_counter()
    timings |= {"retrieve": 1e3 * (ranking - retrieving), "rank": 1e3 * (shaping - ranking), "total": 1e3 * (done - began)}
    shards = release.manifest.shards
    answer = SearchAnswer(
        request_id=request_id,
        version=version_of(release),
        results=results,
        coverage=Coverage(shards_ok=shards, shards_total=shards),
        cached=cached,
        timings_ms={name: round(ms, 3) for name, ms in timings.items()},
    )
    if not query.personal:
        caches.response.put(f"{release.identity}|{query.key}", answer)
    return answer


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


def row_of(searcher: Searcher, product_id: str) -> int:
    """The live row of a product. Raises QueryError(404)."""
    for row in reversed(searcher.features.rows_of(product_key(product_id))):
        if _live(searcher, int(row)):
            return int(row)
    raise QueryError(f"product {product_id!r} is not in this index version", 404)


def _live(searcher: Searcher, row: int) -> bool:
    segment = next(s for s in searcher.segments if s.start <= row < s.start + s.rows)
    return segment.alive is None or bool(segment.alive[row - segment.start])


def _query_vector(
    release: Release, query: Query, limits: ImageLimits, vectors: Cache, timings: dict[str, float], cached: list[str]
) -> tuple[np.ndarray, str | None]:
    """The unit query vector (d,), and the product it is of when that one is not to be in the answer."""
    request = query.request
    if query.photo is None and request.product_id is not None:
        return release.searcher.vector(row_of(release.searcher, request.product_id)), request.product_id
    if query.photo is None:
        with np.errstate(over="ignore"):
            return _checked(np.array(request.vector, np.float32), release.searcher.dim), None
    key = f"{release.query.fingerprint}|{query.source}"
    kept = vectors.get(key)
    if kept is not None:
        cached.append("embedding")
        return kept, None
    vector, spent = release.encode_photo(query.photo, limits)
    timings |= spent
    vectors.put(key, vector)
    return vector, None


def _candidates(release: Release, query: Query, vector: np.ndarray, k: int, kept: Cache, cached: list[str]) -> Found:
    """The first phase, remembered by the vector, the version, the filter and how many were asked for."""
    request = query.request
    wanted = max(request.candidates or release.candidates, k)
    rest = request.filter.model_dump_json() if request.filter else ""
    key = f"{release.identity}|{sha256(vector.tobytes()).hexdigest()}|{wanted}|{rest}"
    found: Found | None = kept.get(key)
    if found is not None:
        cached.append("candidates")
        return found
    allowed = matching(release.searcher.features, request.filter) if request.filter else None
    found = release.retrieve(vector, wanted, allowed)
    kept.put(key, found)
    return found


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
                image_url=f"/v1/images/{quote(row['product_id'], safe='')}",
                reasons=reasons,
                **(row | {"price": price, "category": row["category"] or []}),
            )
        )
    return results[: request.k]


def _codes(names: list[str], wanted: list[str]) -> list[int]:
    return [n for n, name in enumerate(names) if name in set(wanted)]
