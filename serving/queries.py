"""From a request to an answer: the work of one search, done in a worker thread on one release."""

import math
from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any, cast
from urllib.parse import quote

import numpy as np

from serving.cache import Caches
from serving.contract.keys import product_key
from serving.contract.preprocess import ImageLimits
from serving.features import Features
from serving.filters import Filter
from serving.models import Asker, Coverage, Result, SearchAnswer, SearchRequest
from serving.phases import Phases
from serving.profiles import Profiles
from serving.ranker import Ranked, User
from serving.release import UNIT_TOLERANCE, Asked, Release
from serving.samples import Samples
from serving.searcher import Found, Searcher
from serving.together import Searching, Step


class QueryError(Exception):
    """A request that cannot be answered as it is; the message says why, `status` is its HTTP status."""

    reason = "query"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Means:
    """What all searches of a replica use."""

    limits: ImageLimits
    caches: Caches
    profiles: Profiles
    samples: Samples


@dataclass(frozen=True)
class Query:
    """What is asked, before anything is computed: the photo by its bytes or only its sha256, and a key for caches.

    `key` names the query and everything else that the answer depends on besides the versions.
    """

    request: SearchRequest
    photo: bytes | None
    photo_sha256: str
    vector: np.ndarray | None = field(repr=False)
    key: str

    @classmethod
    def of(cls, request: SearchRequest, photo: bytes | None = None, photo_sha256: str = "") -> "Query":
        """Raises ValueError when the photo in the request is not base64."""
        if photo is None and request.image is not None and not photo_sha256:
            photo = request.image_bytes()
        sha = sha256(photo).hexdigest() if photo is not None else photo_sha256
        vector = None if request.vector is None else np.array(request.vector, np.float64)
        source = (
            sha,
            request.text,
            request.text_weight if sha and request.text is not None else None,
            request.product_id,
            None if vector is None else sha256(vector.tobytes()).hexdigest(),
            request.k,
            request.candidates,
            request.filter.canonical() if request.filter else "",
            request.explain,
        )
        key = sha256(repr(source).encode(errors="surrogatepass")).hexdigest()
        return cls(request, photo, sha, vector, key)

    @property
    def kind(self) -> str:
        """photo, text, mixed, product or vector."""
        if self.photo_sha256:
            return "mixed" if self.request.text is not None else "photo"
        return next(
            n for n in ("text", "product", "vector") if getattr(self.request, "product_id" if n == "product" else n) is not None
        )

    @property
    def personal(self) -> bool:
        return self.request.user is not None


@dataclass(frozen=True)
class Encode:
    """A step: the vector (d,) of a picture."""

    release: Release
    pixels: np.ndarray

    @property
    def alike(self) -> Hashable:
        return "encode", id(self.release)

    def run(self, steps: "list[Encode]") -> list[np.ndarray]:
        return self.release.encode([s.pixels for s in steps])


@dataclass(frozen=True)
class Retrieve:
    """A step: the candidates of a vector (d,), as `Found` of one query."""

    release: Release
    vector: np.ndarray
    wanted: int
    filter: Filter | None
    latest: float | None

    @property
    def alike(self) -> Hashable:
        return "retrieve", id(self.release), self.wanted, self.filter and self.filter.canonical()

    def run(self, steps: "list[Retrieve]") -> list[Found]:
        times = [s.latest for s in steps if s.latest is not None]  # the longest: whoever asked waits no longer than its own
        xq = np.stack([s.vector for s in steps])
        found = self.release.retrieve(xq, self.wanted, self.filter, max(times, default=None))
        return [Found(found.similarity[n : n + 1], found.rows[n : n + 1], found.missing) for n in range(len(steps))]


@dataclass(frozen=True)
class Rank:
    """A step: the k best of one query's candidates, as what is shown of them."""

    release: Release
    found: Found
    k: int
    asked: Asked
    user: User | None
    explain: bool

    @property
    def alike(self) -> Hashable:
        if self.user is not None or self.asked.row is not None:
            return "rank", id(self)  # personal, or about a product: by itself
        return "rank", id(self.release), self.k, self.found.rows.shape, self.asked.colours is None, self.explain

    def run(self, steps: "list[Rank]") -> list[list[Result]]:
        ranked = self.release.rank([s.found for s in steps], self.k, [s.asked for s in steps], self.user)
        return _results(ranked, self.release.searcher.features, self.explain)


def etag(release: Release, query: Query) -> str:
    """Names an answer that is not personal, weakly: the same version asked the same finds the same; its id and timings differ."""
    return 'W/"' + sha256(f"{release.identity}|{query.key}".encode()).hexdigest()[:32] + '"'


def search(release: Release, query: Query, means: Means, phases: Phases, request_id: str, sampled: bool = False) -> Searching:
    """The steps of a search, answered from one release throughout; one that is `sampled` may be kept among the real queries.

    A phase's time includes what is done meanwhile for searches beside it. Raises QueryError, FilterError, ImageRejected or DeadlinePassed.
    """
    phases.check("work")
    request, caches = query.request, means.caches
    cached: list[str] = []
    name = f"{release.identity}|{query.key}"
    kept = None if query.personal else caches.response.get(name, lambda kept: kept.version == release.told)
    if kept is not None:
        return kept.again(request_id, phases.timings_ms())
    user = _user(request.user, means.profiles)
    asked = yield from _asked(release, query, means, phases, cached)
    if sampled and not query.personal:
        means.samples.offer(query.kind, release.query.fingerprint, query.photo_sha256, asked.vector, query.photo)
    with phases.phase("retrieve"):
        found = yield from _candidates(release, request, asked, caches, cached, phases.latest)
    with phases.phase("rank"):
        results = yield Rank(release, found, request.k, asked, user, request.explain)
    shards = release.manifest.shards
    answer = SearchAnswer.model_construct(  # of our own making: checking twenty products costs more than finding their titles
        request_id=request_id,
        version=release.told,
        results=results,
        coverage=Coverage(shards_ok=shards - found.missing, shards_total=shards),
        cached=cached,
        timings_ms=phases.timings_ms(),
    )
    if not query.personal and not found.missing:
        caches.response.put(name, answer)
    return answer


def row_of(searcher: Searcher, product_id: str) -> int:
    """The live row of a product. Raises QueryError(404)."""
    for row in reversed(searcher.features.rows_of(product_key(product_id))):
        if searcher.is_live(int(row)):
            return int(row)
    raise QueryError(f"product {product_id!r} is not in this index version", 404)


def _user(asker: Asker | None, profiles: Profiles) -> User | None:
    """The user's preferences: what the request says, over what the feature store knows."""
    if asker is None or not asker.id:
        return asker
    known = profiles.read(asker.id) or User()
    return known.model_copy(update=asker.model_dump(exclude={"id"}, exclude_unset=True))


def _asked(release: Release, query: Query, means: Means, phases: Phases, cached: list[str]) -> Generator[Step, Any, Asked]:
    request = query.request
    if request.product_id is not None:
        row = row_of(release.searcher, request.product_id)
        colours = release.searcher.features.palette
        return Asked(release.vector(row, phases.latest), None if colours is None else colours[row], row)
    if query.vector is not None:
        with np.errstate(over="ignore"):
            return Asked(_checked(query.vector.astype(np.float32), release.searcher.dim))
    photo = (yield from _of_photo(release, query, means, phases, cached)) if query.photo_sha256 else None
    words = _of_words(release, request.text, means.caches, phases, cached) if request.text is not None else None
    if photo is None or words is None:
        found = photo or words
        assert found is not None
        return found
    mixed = (1 - request.text_weight) * photo.vector + request.text_weight * words.vector
    length = float(np.linalg.norm(mixed))
    if length < 1e-6:
        raise QueryError("the photo and the words are opposite to each other and cancel out; change text_weight")
    return Asked(mixed / np.float32(length), photo.colours)


def _of_photo(release: Release, query: Query, means: Means, phases: Phases, cached: list[str]) -> Generator[Step, Any, Asked]:
    key = f"{release.query.fingerprint}|{release.searcher.features.palette is not None}|{query.photo_sha256}"
    kept: Asked | None = means.caches.embedding.get(key, release.is_query)
    if kept is not None:
        cached.append("embedding")
        return kept
    if query.photo is None:
        raise QueryError("this photo is not known here (any more); send it with POST /v1/search", 404)
    with phases.phase("decode"):
        pixels, colours = release.seen(query.photo, means.limits)
    with phases.phase("encode"):
        asked = Asked((yield Encode(release, pixels)), colours)
    means.caches.embedding.put(key, asked)
    return asked


def _of_words(release: Release, text: str, caches: Caches, phases: Phases, cached: list[str]) -> Asked:
    if release.words is None:
        encoder = release.manifest.encoder
        raise QueryError(f"encoder version {encoder.version} has no text tower; search with a photo, a product or a vector")
    key = f"{release.words.fingerprint}|text|{sha256(text.encode()).hexdigest()}"
    kept: Asked | None = caches.embedding.get(key, release.is_query)
    if kept is not None:
        cached.append("embedding")
        return kept
    with phases.phase("encode"):
        asked = Asked(release.words.encode(text))
    caches.embedding.put(key, asked)
    return asked


def _candidates(
    release: Release, request: SearchRequest, asked: Asked, caches: Caches, cached: list[str], latest: float | None
) -> Generator[Step, Any, Found]:
    """The first phase, remembered by the vector, the version, the filter and how many were asked for; only where it is whole."""
    wanted = max(request.candidates or release.candidates, request.k + (asked.row is not None))
    rest = request.filter.canonical() if request.filter else ""
    key = f"{release.identity}|{sha256(asked.vector.tobytes()).hexdigest()}|{wanted}|{sha256(rest.encode()).hexdigest()[:32]}"
    found: Found | None = caches.candidates.get(key, lambda kept: release.are_candidates(kept, wanted))
    if found is not None:
        cached.append("candidates")
        return found
    found = yield Retrieve(release, asked.vector, wanted, request.filter, latest)
    if not found.missing:
        caches.candidates.put(key, found)
    return found


def _checked(vector: np.ndarray, dim: int) -> np.ndarray:
    if vector.shape != (dim,):
        raise QueryError(f"the vector has {vector.size} numbers, this index version takes {dim}")
    length = math.sqrt(vector @ vector)
    if not math.isfinite(length) or abs(length - 1) > UNIT_TOLERANCE:
        raise QueryError(f"the vector has length {length:.3f}; it must be of unit length")
    return vector / length


def _image_url(product_id: str) -> str:
    plain = product_id.isascii() and product_id.isalnum()  # as nearly all are: then there is nothing to quote
    return f"/v1/images/{product_id if plain else quote(product_id, safe='')}"


def _results(ranked: list[Ranked], features: Features, explain: bool) -> list[list[Result]]:
    """What is shown of the ranked products of each query."""
    shown = iter(features.shown(np.concatenate([r.rows for r in ranked])))
    return [_result(one, list(islice(shown, len(one.rows))), explain) for one in ranked]


def _result(ranked: Ranked, results: list[dict[str, Any]], explain: bool) -> list[Result]:
    scores, similarities = ranked.score.round(6).tolist(), ranked.similarity.round(6).tolist()
    terms = {n: t.round(5).tolist() for n, t in ranked.terms.items()} if explain else {}
    for place, shown in enumerate(results):
        shown["score"], shown["similarity"] = scores[place], similarities[place]
        shown["image_url"] = _image_url(shown["product_id"])
        if explain:
            note = ranked.notes.get(place)
            shown["reasons"], shown["notes"] = {n: t[place] for n, t in terms.items()}, [note] if note else []
    return cast(list[Result], results)
