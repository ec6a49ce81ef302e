"""A short version of the proofs under load: versions flip, a corrupt one is offered, garbage comes in; nothing fails or mixes."""

import contextlib
import gc
import itertools
import threading
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest

from tests.benchmarks.bench_soak import Garbage
from tests.load import MARK, Load, fire, photo_request
from tests.running import Served, until
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront, corrupt

pytestmark = pytest.mark.slow


def test_flips_under_load_fail_nothing_and_mix_nothing(store: Storefront) -> None:
    """Each version has another encoder; every answer is compared with what its version answers when nothing else happens."""
    store.point(green="2")
    asked = [photo_request(store.photos[p] + MARK, {"k": "20"}) for p in store.ids[:6]]
    app = open_app(store)
    replica = app.state.replica
    with Served(app) as served:
        known: dict[tuple[int, str], str] = {}
        for version in ("2", "1"):
            store.point(live=version)
            replica.slots.refresh()
            while any((number, version) not in known for number in range(len(asked))):  # however slow the machine is
                shots = fire(served.url, asked, 1, 1.0)
                known |= {(r, version): d for r, d in zip(shots.request.tolist(), shots.digest.tolist(), strict=True)}
        assert len(set(known.values())) == 12
        with Load(served.url, asked, 4, 8.0) as load:
            while load.process.poll() is None:
                store.point(live="2" if replica.slots.live.version == "1" else "1")
                replica.slots.refresh()
                time.sleep(0.5)
            shots = load.wait()
    assert shots.failed == 0
    assert set(shots.version) == {"1", "2"}
    assert np.array_equal(shots.version, shots.encoder)
    told = zip(shots.request.tolist(), shots.version.tolist(), shots.digest.tolist(), strict=True)
    assert [d for r, v, d in told if known[(r, v)] != d] == []


WRONG: list[dict[str, Any]] = [
    {"product_id": "nobody"}, {"vector": [1.0, 2.0]}, {"text": "a mug"}, {"image": "aGVsbG8="}, {"vector": [9.0] * 16},
    {"product_id": "P001/Shoes", "filter": {"colour": "red"}}, {"product_id": "P001/Shoes", "filter": {"price": {"lt": "many"}}},
]  # fmt: skip


def test_versions_that_are_retired_under_load_are_freed_by_reference_counting_alone(store: Storefront) -> None:
    """Good, wrong, late and abandoned searches, alone and in batches, while versions flip; without Python's cycle collector."""
    photos = list(store.photos.values())
    app = open_app(store, queue=2)
    replica, stop = app.state.replica, threading.Event()
    statuses: Counter[int] = Counter()

    def shop(url: str, number: int) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            for n in itertools.count(number):
                if stop.is_set():
                    return
                wrong = WRONG[n % len(WRONG)]
                late = {"X-Timeout-Ms": str(n % 7)}
                for answer in (
                    client.post("/v1/search", files={"image": photos[n % len(photos)] + MARK + str(n).encode()}),
                    client.post("/v1/search", json=wrong),
                    client.post("/v1/search", files={"image": photos[n % len(photos)] + str(n).encode()}, headers=late),
                    client.post("/v1/search/batch", json={"searches": [wrong, *WRONG]}, headers=late),
                ):
                    statuses[answer.status_code] += 1
                with contextlib.suppress(httpx.TimeoutException):
                    client.post("/v1/search", files={"image": photos[0] + f"gone {n}".encode()}, timeout=0.001)

    with Served(app) as served:
        threads = [threading.Thread(target=shop, args=(served.url, 1000 * n)) for n in range(6)]
        gc.collect()
        gc.disable()
        try:
            for thread in threads:
                thread.start()
            for flips, (version, slot) in enumerate([("2", "green"), ("1", "blue")] * 4, start=1):
                other = "blue" if slot == "green" else "green"
                store.point(**{slot: version, "live": version})
                until(lambda version=version: replica.slots.live.version == version, f"version {version} is live")
                time.sleep(0.2)
                store.point(**{other: ""})
                until(lambda flips=flips: replica.slots.freed == flips, f"the version before flip {flips} is freed")
            stop.set()
            for thread in threads:
                thread.join(60)
        finally:
            stop.set()
            gc.enable()
    assert {200, 404, 415, 422, 504} <= set(statuses) <= {200, 404, 415, 422, 503, 504}, statuses


def test_a_corrupt_candidate_is_offered_under_load_and_never_serves(store: Storefront) -> None:
    corrupt(store.release / "files" / store.manifest("2")["segments"][0]["index"]["sha256"])
    asked = [photo_request(store.photos[store.ids[0]] + MARK)]
    app = open_app(store)
    with Served(app) as served, Load(served.url, asked, 2, 8.0) as load:
        store.point(green="2", live="2")
        app.state.replica.slots.refresh()
        shots = load.wait()
        green = app.state.replica.slots.describe()["slots"]["green"]
    assert (green["state"], "corrupt" in green["reason"]) == ("failed", True)
    assert shots.failed == 0
    assert set(shots.version) == {"1"}


def test_garbage_is_refused_and_shoppers_do_not_notice(store: Storefront) -> None:
    asked = [photo_request(store.photos[p]) for p in store.ids[:3]]
    with Served(open_app(store, body_s=3.0)) as served:
        garbage = Garbage(served.url, list(store.photos.values()))
        kinds = [
            garbage.fuzzed, garbage.truncated, garbage.damaged, garbage.bomb, garbage.bomb, garbage.long, garbage.endless, garbage.slow,
            garbage.gone, garbage.nonsense, garbage.nonsense, garbage.fuzzed,
        ]  # fmt: skip
        with Load(served.url, asked, 2, 8.0) as load:
            for kind in kinds:
                garbage.throw(kind)
            shots = load.wait()
        metrics = httpx.get(f"{served.url}/metrics", timeout=60, trust_env=False).text
    assert 'status="499"' in metrics  # whoever left in the middle
    assert 'status="500"' not in metrics
    assert shots.failed == 0
    statuses = {status for _, status in garbage.seen}
    assert statuses <= {0, 200, 400, 404, 408, 413, 415, 422}
    assert {413, 422} <= statuses
