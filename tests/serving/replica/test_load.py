"""The load generator that the proofs under load stand on, against a real replica."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.load import fire, json_request, photo_request, request
from tests.running import Served
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront

pytestmark = pytest.mark.slow


@pytest.fixture
def url(store: Storefront) -> Iterator[str]:
    with Served(open_app(store)) as served:
        yield served.url


def test_closed_loop_keeps_every_answer_with_its_version(url: str, front: Storefront) -> None:
    asked = [photo_request(front.photos[front.ids[3]], {"k": "5"}), json_request({"product_id": front.ids[0], "k": 5})]
    shots = fire(url, asked, clients=3, seconds=1)
    while len(shots.status) <= 20:  # however slow the machine is
        assert shots.failed == 0
        shots = fire(url, asked, clients=3, seconds=1)
    assert shots.failed == 0
    assert set(shots.version) == set(shots.encoder) == {"1"}
    # The same question to the same version has the same answer: one digest for each request.
    assert [len(set(shots.digest[shots.request == n])) for n in (0, 1)] == [1, 1]
    assert "" not in set(shots.digest)
    assert 0 < shots.ms(50) <= shots.ms(99)


def test_open_loop_keeps_to_its_rate_and_counts_what_fails(url: str) -> None:
    shots = fire(url, [request("GET", "/healthz"), json_request({"product_id": "nobody"})], clients=4, seconds=2, rate=100)
    assert 120 < len(shots.status) < 280
    assert set(shots.status) == {200, 404}
    assert shots.failed == int((shots.status == 404).sum())
    assert np.all(np.diff(np.sort(shots.at_s)) >= 0)


def test_a_replica_that_is_away_is_a_failure_and_not_an_error() -> None:
    shots = fire("http://127.0.0.1:9", [request("GET", "/")], clients=1, seconds=0.2)
    assert set(shots.status) == {0}
