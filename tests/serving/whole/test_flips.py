"""A short version of the proofs under load: versions flip, a corrupt one is offered, garbage comes in; nothing fails or mixes."""

import time

import httpx
import numpy as np
import pytest

from tests.benchmarks.bench_soak import Garbage
from tests.load import MARK, Load, fire, photo_request
from tests.running import Served
from tests.serving.whole.conftest import open_app
from tests.serving.whole.storefront import Storefront, corrupt

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
        with Load(served.url, asked, 4, 5.0) as load:
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


def test_a_corrupt_candidate_is_offered_under_load_and_never_serves(store: Storefront) -> None:
    corrupt(store.release / "files" / store.manifest("2")["segments"][0]["index"]["sha256"])
    asked = [photo_request(store.photos[store.ids[0]] + MARK)]
    app = open_app(store)
    with Served(app) as served, Load(served.url, asked, 2, 2.0) as load:
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
        metrics = httpx.get(f"{served.url}/metrics", trust_env=False).text
    assert 'status="499"' in metrics  # whoever left in the middle
    assert 'status="500"' not in metrics
    assert shots.failed == 0
    statuses = {status for _, status in garbage.seen}
    assert statuses <= {0, 200, 400, 404, 408, 413, 415, 422}
    assert {413, 422} <= statuses
