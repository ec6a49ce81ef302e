"""Real processes over real HTTP under load: a shard killed and started again, and flips of the encoder and the index."""

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.cluster import cluster
from tests.load import Load, fire, json_request, photo_request
from tests.running import until
from tests.serving.replica.storefront import Storefront

pytestmark = pytest.mark.slow


def requests(store: Storefront) -> list[bytes]:
    """Photos and a filter; enough different ones that a version's answers can be told from another's."""
    photos = [photo_request(store.photos[p], {"k": "48"}) for p in store.ids[:12]]
    filtered = [photo_request(store.photos[p], {"filter": '{"in_stock": true}'}) for p in store.ids[12:16]]
    return photos + filtered


def test_a_killed_shard_costs_coverage_and_no_answer(store: Storefront, tmp_path: Path) -> None:
    asked = [json_request({"vector": v.tolist(), "k": 20, "candidates": 20 + n}) for n, v in enumerate(store.vectors["1"])]
    with (
        cluster(
            store.release, tmp_path, 2, patient=True, probe_s="0.2", cache_url="redis://127.0.0.1:1"
        ) as made,  # no cache answers
        Load(made.gateway.url, asked, clients=4, seconds=120.0) as load,
    ):
        time.sleep(2.0)
        kill_at = time.time()
        made.shards[1].kill()
        killed_at = time.time()
        time.sleep(2.0)
        start_at = time.time()
        made.shards[1].start()
        made.shards[1].until_ready()
        until(lambda: made.coverage() == (2, 2), "the shard is asked again")
        back_at = time.time()
        time.sleep(6.0)
        shots = load.stop()
    answered_at = shots.at_s + shots.took_ms / 1e3
    assert shots.failed == 0, np.unique(shots.status, return_counts=True)
    assert set(shots.shards.tolist()) == {1, 2}
    assert (shots.shards[answered_at < kill_at] == 2).all()
    assert (shots.shards[(shots.at_s > killed_at) & (answered_at < start_at)] == 1).all()
    assert (shots.shards[shots.at_s > back_at] == 2).all()
    assert (shots.at_s > back_at).any()


def test_flips_under_load_never_mix_versions(store: Storefront, tmp_path: Path) -> None:
    """Every answer is compared with what a quiet gateway answered with the version it names: ids, scores, all of it."""
    asked = requests(store)
    with cluster(store.release, tmp_path, 2, {"poll_s": "0.1"}, patient=True, poll_s="0.1", probe_s="0.1") as made:
        url = made.gateway.url
        store.point(green="2")
        expected: dict[tuple[str, int], str] = {}
        for version in ("1", "2"):
            store.point(live=version)
            until(lambda version=version: _live(url) == version)  # type: ignore[misc]
            while not all((version, number) in expected for number in range(len(asked))):
                quiet = fire(url, asked, clients=1, seconds=2.0)
                assert quiet.failed == 0
                for number, digest in zip(quiet.request, quiet.digest, strict=True):
                    assert expected.setdefault((version, int(number)), str(digest)) == digest
        with Load(url, asked, clients=4, seconds=300.0) as load:
            for flips in range(8):
                store.point(live=("1", "2")[flips % 2])
                until(lambda flips=flips: _live(url) == ("1", "2")[flips % 2])  # type: ignore[misc]
                time.sleep(0.5)
            shots = load.stop()
    assert shots.failed == 0, np.unique(shots.status, return_counts=True)
    assert set(shots.version.tolist()) == {"1", "2"}
    assert (shots.version == shots.encoder).all()  # each version has the encoder of its own number
    assert (shots.shards == 2).all()
    mixed = [n for n, v, d in zip(shots.request, shots.version, shots.digest, strict=True) if expected[(str(v), int(n))] != d]
    assert mixed == []


def test_a_flip_gives_the_old_versions_memory_back(store: Storefront, tmp_path: Path) -> None:
    """Both versions through both slots many times over: what a process occupies does not grow from round to round."""
    with cluster(store.release, tmp_path, 2, {"poll_s": "0.05"}, patient=True, poll_s="0.05", probe_s="0.05") as made:
        processes = [made.gateway, *made.shards]
        sizes = []
        for _ in range(5):
            for version, slot, other in (("2", "green", "blue"), ("1", "blue", "green")):
                store.point(**{slot: version, "live": version})
                until(lambda version=version: _live(made.gateway.url) == version)  # type: ignore[misc]
                for photo in list(store.photos.values())[:8]:
                    answer = httpx.post(f"{made.gateway.url}/v1/search", files={"image": photo}, timeout=30, trust_env=False)
                    assert answer.json()["version"]["index"] == version
                store.point(**{other: ""})
            until(lambda: _freed(made.gateway.url))
            sizes.append(sum(p.resident_bytes() for p in processes))
        assert sizes[-1] < 1.1 * sizes[1], [round(s / 2**20) for s in sizes]


def _live(url: str) -> str:
    return _told(url)["live"]["version"]


def _freed(url: str) -> bool:
    metrics = _get(url, "/metrics").text
    return "vitrine_draining_versions 0.0" in metrics


def _told(url: str) -> dict:
    return _get(url, "/v1/version").json()


def _get(url: str, path: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", timeout=30, trust_env=False)
