"""The search pipeline: decode, encode, retrieve, rank, on one release."""

import math
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote

import numpy as np

from serving.contract.keys import product_key
from serving.contract.preprocess import ImageLimits
from serving.index.searcher import Searcher
from serving.ranking.features import Features
from serving.ranking.profiles import Profiles
from serving.ranking.ranker import Ranked, User
from serving.search.caches import Caches
from serving.search.query import Query, QueryError, text_encoder
from serving.search.samples import Samples
from serving.search.schemas import Coverage, RequestUser, Result, SearchAnswer
from serving.search.search_cache import SearchCache
from serving.telemetry.timing import Timings
from serving.versions.release import UNIT_TOLERANCE, EncodedQuery, Release


@dataclass(frozen=True)
class SearchDeps:
    """Dependencies that all searches of a replica share."""

    limits: ImageLimits
    caches: Caches
    profiles: Profiles
    samples: Samples


def search(
    release: Release, query: Query, deps: SearchDeps, timings: Timings, request_id: str, sampled: bool = False
) -> SearchAnswer:
    """Answers a query from one release throughout; with `sampled` it may be kept as a query sample.

    Raises QueryError, FilterError, ImageRejected, CostlyImage or DeadlinePassed.
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
                pixels, colours = release.preprocess_photo(query.photo_bytes(), deps.limits, query.box, query.pixels)
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
            words = query.words(release, encoded)
            found = release.retrieve(encoded.vector[None], wanted, request.filter, timings.deadline.at, words)
            cache.put_candidates(encoded, wanted, found)
    with timings.phase("rank"):
        ranked = release.rank(found, request.k, encoded, user)
        results = _results(ranked, release.searcher.features, request.explain, _own_similarity(release, query))
        if release.manifest.several_pictures:
            _add_matched(results, found.pictures_of(ranked.rows))

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


def _add_matched(results: list[Result], pictures: np.ndarray) -> None:
    """Says of each result which of its product's pictures matched, (n,) by position; -1, a title: the product has no picture."""
    for result, picture in zip(results, pictures.tolist(), strict=True):
        if picture < 0:
            result["image_url"] = result["matched_image"] = None
        else:
            result["matched_image"] = f"{result['image_url']}?picture={picture}" if picture else result["image_url"]


def row_of(searcher: Searcher, product_id: str) -> int:
    """The live row of a product. Raises QueryError(404)."""
    for row in reversed(searcher.features.rows_of(product_key(product_id))):
        if searcher.is_live(int(row)):
            return int(row)
    raise QueryError(f"product {product_id!r} is not in this index version", 404)


def _preferences(asker: RequestUser | None, profiles: Profiles) -> User | None:
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
