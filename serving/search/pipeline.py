"""The search pipeline: decode, encode, retrieve, rank, on one release."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import cast
from urllib.parse import quote

import numpy as np

from serving.contract.box import Box
from serving.contract.keys import product_key
from serving.contract.preprocess import ImageLimits
from serving.index.searcher import Neighbors, Searcher
from serving.ranking.features import Features
from serving.ranking.profiles import Profiles
from serving.ranking.ranker import Ranked, User
from serving.search.caches import Caches
from serving.search.samples import Samples
from serving.search.schemas import Asker, Coverage, Result, SearchAnswer, SearchRequest
from serving.telemetry.timing import Timings
from serving.versions.release import UNIT_TOLERANCE, EncodedQuery, Release
from serving.versions.text_encoder import TextEncoder


class QueryError(Exception):
    """A query that cannot be answered; the message says why, `status` is its HTTP status."""

    reason = "query"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class SearchDeps:
    """Dependencies that all searches of a replica share."""

    limits: ImageLimits
    caches: Caches
    profiles: Profiles
    samples: Samples


@dataclass(frozen=True)
class Query:
    """A parsed request: its photo, by bytes or only by sha256, the box in it (None: the whole photo), its vector, and its cache key.

    `key` hashes everything the answer depends on besides the versions.
    """

    request: SearchRequest
    photo: bytes | None
    photo_sha256: str
    vector: np.ndarray | None = field(repr=False)
    key: str
    box: Box | None = None

    @classmethod
    def of(cls, request: SearchRequest, photo: bytes | None = None, photo_sha256: str = "") -> "Query":
        """The query of a request. Raises ValueError when its photo is not base64, or its box does not lie in a photo."""
        box = _box_of(request)
        if photo is None and request.image is not None and not photo_sha256:
            photo = request.image_bytes()
        sha = sha256(photo).hexdigest() if photo is not None else photo_sha256
        vector = None if request.vector is None else np.array(request.vector, np.float64)
        source: tuple[object, ...] = (
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
        source += (box.model_dump_json(),) if box else ()
        key = sha256(repr(source).encode(errors="surrogatepass")).hexdigest()
        return cls(request, photo, sha, vector, key, box)

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

    def photo_bytes(self) -> bytes:
        """The photo's bytes. Raises QueryError(404) where only its sha256 is known."""
        if self.photo is None:
            raise QueryError("this photo is not known here (any more); send it with POST /v1/search", 404)
        return self.photo


def _box_of(request: SearchRequest) -> Box | None:
    """The box of a request, None where it is the whole photo. Raises ValueError."""
    if request.box is None:
        return None
    if request.image is None and request.image_url is None:
        raise ValueError("box: it is a part of a photo, and there is no photo in this request")
    if outside := request.box.outside():
        raise ValueError(f"box: {outside}")
    return None if request.box.whole else request.box


def etag(release: Release, query: Query) -> str:
    """Weak ETag of an answer that is not personal: equal for the same query and version; request id and timings differ."""
    return 'W/"' + sha256(f"{release.identity}|{query.key}".encode()).hexdigest()[:32] + '"'


def search(
    release: Release, query: Query, deps: SearchDeps, timings: Timings, request_id: str, sampled: bool = False
) -> SearchAnswer:
    """Answers a query from one release throughout; with `sampled` it may be kept as a query sample.

    Raises QueryError, FilterError, ImageRejected or DeadlinePassed.
    """
    timings.deadline.check("work")
    request, cache = query.request, SearchCache(release, query, deps.caches)
    if (remembered := cache.answer()) is not None:
        return remembered.with_request(request_id, timings.timings_ms())
    user = _preferences(request.user, deps.profiles)

    encoded = _query_vector(release, query, timings)
    if encoded is None:
        photo, text = cache.photo(), cache.text()
        if query.photo_sha256 and photo is None:
            with timings.phase("decode"):
                pixels, colours = release.preprocess_photo(query.photo_bytes(), deps.limits, query.box)
            with timings.phase("encode"):
                photo = cache.put_photo(EncodedQuery(release.encode(pixels), colours))
        if request.text is not None and text is None:
            with timings.phase("encode"):
                text = cache.put_text(EncodedQuery(text_encoder(release).encode(request.text)))
        encoded = _mix(photo, text, request.text_weight)
    if sampled and not query.personal:
        deps.samples.offer(query.kind, release.query.fingerprint, query.photo_sha256, encoded.vector, query.photo, query.box)

    with timings.phase("retrieve"):
        wanted = max(request.candidates or release.candidates, request.k + (encoded.row is not None))
        found = cache.candidates(encoded, wanted)
        if found is None:
            found = release.retrieve(encoded.vector[None], wanted, request.filter, timings.deadline.at)
            cache.put_candidates(encoded, wanted, found)
    with timings.phase("rank"):
        ranked = release.rank(found, request.k, encoded, user)
        results = _results(ranked, release.searcher.features, request.explain, _own_similarity(release, query))

    shards = release.manifest.shards
    answer = SearchAnswer.model_construct(  # of our own making: checking twenty products costs more than finding their titles
        request_id=request_id,
        version=release.version_info,
        results=results,
        coverage=Coverage(shards_ok=shards - found.missing, shards_total=shards),
        cached=cache.hits,
        timings_ms=timings.timings_ms(),
    )
    return cache.put_answer(answer, found)


class SearchCache:
    """One search's view of the caches: builds the keys, and lists in `hits` what was found.

    Every key names the versions its value depends on. Personal and partial answers are not cached.
    """

    def __init__(self, release: Release, query: Query, caches: Caches) -> None:
        self.release, self.query, self.caches = release, query, caches
        self.hits: list[str] = []
        self.answer_key = f"{release.identity}|{query.key}"
        self.photo_key = f"{release.query.fingerprint}|{release.searcher.features.palette is not None}|{query.photo_sha256}"
        if query.box is not None:
            self.photo_key += f"|{query.box.model_dump_json()}"

    def answer(self) -> SearchAnswer | None:
        if self.query.personal:
            return None
        version = self.release.version_info
        return cast(SearchAnswer | None, self.caches.response.get(self.answer_key, lambda kept: kept.version == version))

    def put_answer(self, answer: SearchAnswer, found: Neighbors) -> SearchAnswer:
        if not self.query.personal and not found.missing:
            self.caches.response.put(self.answer_key, answer)
        return answer

    def photo(self) -> EncodedQuery | None:
        return self._embedding(self.photo_key) if self.query.photo_sha256 else None

    def put_photo(self, encoded: EncodedQuery) -> EncodedQuery:
        self.caches.embedding.put(self.photo_key, encoded)
        return encoded

    def text(self) -> EncodedQuery | None:
        """The cached text embedding. Raises QueryError where the encoder has no text tower."""
        return self._embedding(self._text_key()) if self.query.request.text is not None else None

    def put_text(self, encoded: EncodedQuery) -> EncodedQuery:
        self.caches.embedding.put(self._text_key(), encoded)
        return encoded

    def candidates(self, encoded: EncodedQuery, k: int) -> Neighbors | None:
        key, release = self._candidates_key(encoded, k), self.release
        found: Neighbors | None = self.caches.candidates.get(key, lambda kept: release.accepts_candidates(kept, k))
        if found is not None:
            self.hits.append("candidates")
        return found

    def put_candidates(self, encoded: EncodedQuery, k: int, found: Neighbors) -> None:
        if not found.missing:
            self.caches.candidates.put(self._candidates_key(encoded, k), found)

    def _embedding(self, key: str) -> EncodedQuery | None:
        encoded: EncodedQuery | None = self.caches.embedding.get(key, self.release.accepts_query)
        if encoded is not None:
            self.hits.append("embedding")
        return encoded

    def _text_key(self) -> str:
        text = (self.query.request.text or "").encode()
        return f"{text_encoder(self.release).fingerprint}|text|{sha256(text).hexdigest()}"

    def _candidates_key(self, encoded: EncodedQuery, k: int) -> str:
        chosen = self.query.request.filter
        rest = sha256((chosen.canonical() if chosen else "").encode()).hexdigest()[:32]
        return f"{self.release.identity}|{sha256(encoded.vector.tobytes()).hexdigest()}|{k}|{rest}"


def text_encoder(release: Release) -> TextEncoder:
    """The release's text encoder. Raises QueryError where its encoder version has none."""
    if release.text_encoder is None:
        version = release.manifest.encoder.version
        raise QueryError(f"encoder version {version} has no text tower; search with a photo, a product or a vector")
    return release.text_encoder


def row_of(searcher: Searcher, product_id: str) -> int:
    """The live row of a product. Raises QueryError(404)."""
    for row in reversed(searcher.features.rows_of(product_key(product_id))):
        if searcher.is_live(int(row)):
            return int(row)
    raise QueryError(f"product {product_id!r} is not in this index version", 404)


def _preferences(asker: Asker | None, profiles: Profiles) -> User | None:
    """The user's preferences: the request's own, over those of the feature store."""
    if asker is None or not asker.id:
        return asker
    known = profiles.read(asker.id) or User()
    return known.model_copy(update=asker.model_dump(exclude={"id"}, exclude_unset=True))


def _query_vector(release: Release, query: Query, timings: Timings) -> EncodedQuery | None:
    """The query of a product (its stored vector) or of the caller's vector; None where a photo or text has to be encoded."""
    product_id, searcher = query.request.product_id, release.searcher
    if product_id is not None:
        row = row_of(searcher, product_id)
        colours = searcher.features.palette
        return EncodedQuery(release.vector(row, timings.deadline.at), None if colours is None else colours[row], row)
    if query.vector is not None:
        with np.errstate(over="ignore"):
            return EncodedQuery(_checked(query.vector.astype(np.float32), searcher.dim))
    return None


def _mix(photo: EncodedQuery | None, text: EncodedQuery | None, text_weight: float) -> EncodedQuery:
    """The only one given, or the normalised weighted sum of both, with the photo's colours."""
    if photo is None or text is None:
        given = photo or text
        assert given is not None
        return given
    mixed = (1 - text_weight) * photo.vector + text_weight * text.vector
    length = float(np.linalg.norm(mixed))
    if length < 1e-6:
        raise QueryError("the photo and the words are opposite to each other and cancel out; change text_weight")
    return EncodedQuery(mixed / np.float32(length), photo.colours)


def _checked(vector: np.ndarray, dim: int) -> np.ndarray:
    if vector.shape != (dim,):
        raise QueryError(f"the vector has {vector.size} numbers, this index version takes {dim}")
    length = math.sqrt(vector @ vector)
    if not math.isfinite(length) or abs(length - 1) > UNIT_TOLERANCE:
        raise QueryError(f"the vector has length {length:.3f}; it must be of unit length")
    return vector / length


def _own_similarity(release: Release, query: Query) -> float | None:
    """The similarity that counts as a perfect match: a product's own picture's. None for words, which have no such thing."""
    if query.photo_sha256:
        return release.self_similarity
    return None if query.request.text is not None else 1.0


def _results(ranked: Ranked, features: Features, explain: bool, own: float | None) -> list[Result]:
    """The ranked products as results; with `explain`, each term of their scores. `own`: see `_own_similarity`."""
    results = features.display_fields(ranked.rows)
    scores, similarities = ranked.score.round(6).tolist(), ranked.similarity.round(6).tolist()
    terms = {n: t.round(5).tolist() for n, t in ranked.terms.items()} if explain else {}
    matches = None if own is None else ranked.match(own).round(4).tolist()
    for place, shown in enumerate(results):
        shown["score"], shown["similarity"] = scores[place], similarities[place]
        if matches is not None:
            shown["match"] = matches[place]
        shown["image_url"] = f"/v1/images/{quote(shown['product_id'], safe='')}"
        if explain:
            note = ranked.notes.get(place)
            shown["reasons"], shown["notes"] = {n: t[place] for n, t in terms.items()}, [note] if note else []
    return cast(list[Result], results)
