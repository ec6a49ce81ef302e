"""Searches of every kind worked on together answer as each does alone."""

from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import pytest

from serving.cache import Caches
from serving.contract.preprocess import ImageLimits
from serving.models import SearchAnswer, SearchRequest
from serving.phases import Phases
from serving.profiles import NoProfiles
from serving.queries import Means, Query, QueryError, Rank, search
from serving.release import Release
from serving.samples import Samples
from serving.slots import WholeVersions
from serving.source import release_in
from serving.together import Search, together
from tests.serving.whole.storefront import Storefront

ASIDE = {"request_id", "timings_ms"}


@pytest.fixture(scope="module")
def release(front: Storefront) -> Release:
    return WholeVersions(release_in(front.release), 1).open("1")


def begun(release: Release, photo: bytes | None = None, **asked: Any) -> Search:
    """A search that no other one has left anything for."""
    means = Means(ImageLimits(), Caches(), NoProfiles(), Samples(0, 10, False))
    query = Query.of(SearchRequest.model_validate({"image": "", **asked} if photo else asked), photo)
    return Search(search(release, query, means, Phases(), "id"), copy_context(), Future())  # type: ignore[arg-type]


def answers(searches: list[Search]) -> list[dict[str, Any]]:
    together(searches)
    told = []
    for one in searches:
        assert isinstance(one.answer, SearchAnswer), one.error
        told.append(one.answer.model_dump(exclude=ASIDE))
    return told


def test_searches_of_every_kind_together_answer_as_each_alone(front: Storefront, release: Release) -> None:
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
    alone = [answers([begun(release, photo, **fields)])[0] for photo, fields in asked]
    assert answers([begun(release, photo, **fields) for photo, fields in asked]) == alone
    assert all(a["results"] for a in alone)
    assert front.ids[5] not in [r["product_id"] for r in alone[-2]["results"]]


def test_what_is_ranked_for_several_is_one_call(front: Storefront, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    once = Rank.run
    monkeypatch.setattr(Rank, "run", lambda self, steps: calls.append(len(steps)) or once(self, steps))
    photos = list(front.photos.values())[:3]
    answers([begun(release, photo, candidates=30) for photo in photos] + [begun(release, photos[0], candidates=30, user={})])
    assert sorted(calls) == [1, 3]


def test_a_wrong_search_among_others_fails_alone(front: Storefront, release: Release) -> None:
    photos = list(front.photos.values())[:2]
    searches = [begun(release, photo, candidates=30) for photo in photos]
    wrong = begun(release, product_id="nobody's")
    together([searches[0], wrong, searches[1]])
    assert isinstance(wrong.error, QueryError)
    assert all(isinstance(s.answer, SearchAnswer) for s in searches)
