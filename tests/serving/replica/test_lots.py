"""Searches of every kind on several threads at once answer as each does alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.contract.preprocess import ImageLimits
from serving.ranking.profiles import NoProfiles
from serving.search.caches import Caches
from serving.search.pipeline import SearchDeps, search
from serving.search.query import Query, QueryError
from serving.search.samples import Samples
from serving.search.schemas import SearchAnswer, SearchRequest
from serving.telemetry.timing import Timings
from serving.versions.release import Release
from serving.versions.slots import ReleaseOpener
from serving.versions.version_source import exported_release
from tests.serving.replica.storefront import Storefront

ASIDE = {"request_id", "timings_ms"}


@pytest.fixture(scope="module")
def release(front: Storefront) -> Release:
    return ReleaseOpener(exported_release(front.release), 1).open("1")


def answer(release: Release, photo: bytes | None, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer of a search that no other one has left anything in a cache for."""
    deps = SearchDeps(ImageLimits(), Caches(), NoProfiles(), Samples(0, 10, False))
    query = Query.of(SearchRequest.model_validate({"image": "", **asked} if photo else asked), photo)
    found = search(release, query, deps, Timings(), "id")
    assert isinstance(found, SearchAnswer)
    return found.model_dump(exclude=ASIDE)


def test_searches_of_every_kind_side_by_side_answer_as_each_alone(front: Storefront, release: Release) -> None:
    photos = list(front.photos.values())[:4]
    vectors = [v.tolist() for v in front.vectors["1"][:3]]
    user = {"brands": {"Norda": 1.0}, "price": 20.0}
    asked: list[tuple[bytes | None, dict[str, Any]]] = [
        *((photo, {"candidates": 30}) for photo in photos),
        (photos[0], {"candidates": 30, "explain": True}),
        (photos[1], {"candidates": 30, "k": 3}),
        (photos[2], {"candidates": 30, "user": user}),
        *((None, {"vector": vector, "candidates": 30}) for vector in vectors),
        (None, {"vector": vectors[0]}),  # more candidates than there are products
        (None, {"vector": vectors[1], "filter": {"brand": "Vela"}, "explain": True}),
        (None, {"product_id": front.ids[5], "candidates": 30}),
        (None, {"product_id": front.ids[6], "candidates": 30}),
    ]
    alone = [answer(release, photo, fields) for photo, fields in asked]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda one: answer(release, *one), asked)) == alone
    assert all(a["results"] for a in alone)
    assert front.ids[5] not in [r["product_id"] for r in alone[-2]["results"]]


def test_a_wrong_search_among_others_fails_alone(front: Storefront, release: Release) -> None:
    photos = list(front.photos.values())[:2]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(answer, release, photos[0], {"candidates": 30})
        wrong = pool.submit(answer, release, None, {"product_id": "nobody's"})
        second = pool.submit(answer, release, photos[1], {"candidates": 30})
        assert isinstance(wrong.exception(), QueryError)
        assert first.result()["results"]
        assert second.result()["results"]
