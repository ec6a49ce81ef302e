"""Shards that die, come back, are slow, or lack a version: an answer says what it covers, and never mixes versions."""

from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.cluster.shard_set import ShardSearcher
from serving.cluster.wire import SEARCH, VECTORS, pack, unpack
from serving.contract.keys import product_key
from tests.running import Served, until
from tests.serving.cluster.conftest import gateway_app, running, shard_app
from tests.serving.replica.storefront import Storefront, corrupt

pytestmark = pytest.mark.slow


def _of_shard(store: Storefront, shard: int) -> str:
    return next(p for p in store.ids if product_key(p) % 2 == shard)


def coverage(client: TestClient, store: Storefront, place: int = 7) -> tuple[int, int]:
    answer = client.post("/v1/search", json={"vector": store.vectors["1"][place].tolist(), "k": 40})
    assert answer.status_code == 200, answer.text
    return tuple(answer.json()["coverage"].values())


def test_a_dead_shard_lowers_coverage_is_not_cached_and_comes_back(store: Storefront) -> None:
    with running(store, (0,), (1,)) as (client, served):
        assert coverage(client, store) == (2, 2)
        port = int(served[1].url.rsplit(":", 1)[1])
        served[1].__exit__(None, None, None)
        until(lambda: coverage(client, store, 8) == (1, 2))
        found = client.get("/v1/search", params={"product_id": _of_shard(store, 0)})
        assert found.status_code == 200
        assert found.headers["cache-control"] == "private, no-store"
        assert "etag" not in found.headers
        lost = client.get("/v1/search", params={"product_id": _of_shard(store, 1)})
        assert lost.status_code == 503
        assert "does not answer" in lost.json()["detail"]
        assert (lost.json()["reason"], lost.headers["retry-after"]) == ("shards_away", "1")
        with Served(shard_app(store, 1), port):
            until(lambda: coverage(client, store, 8) == (2, 2))
        assert 'vitrine_partial_answers_total{version="1"}' in client.get("/metrics").text


def test_when_every_shard_is_away_the_answer_is_503(store: Storefront) -> None:
    with running(store, (0, 1)) as (client, served):
        assert coverage(client, store) == (2, 2)
        served[0].__exit__(None, None, None)
        answer = client.post("/v1/search", json={"vector": store.vectors["1"][9].tolist()})
        assert (answer.status_code, answer.json()["detail"]) == (503, "no shard answered; try again in a second")
        assert (answer.json()["reason"], answer.headers["retry-after"]) == ("shards_away", "1")
        assert client.get("/readyz").status_code == 200


def test_a_replica_takes_over_at_once(store: Storefront) -> None:
    with running(store, (0, 1), (1,), (0,)) as (client, served):
        served[0].__exit__(None, None, None)
        for place in range(20):
            assert coverage(client, store, place) == (2, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        "junk",
        "another content",
        "too few arrays",
        "another shape",
        "rows of nothing",
        "rows below",
        "no number",
        "endless",
        "as text",
    ],
)
def test_a_wrong_answer_is_no_answer_and_nobody_elses_fault(
    store: Storefront, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(store, (0,), (1,)) as (client, served):
        holder = served[1].server.config.app.state.server  # type: ignore[union-attr]
        digest = holder.state()["versions"]["1"]["digest"]
        found = np.zeros((1, 40), np.float32), np.zeros((1, 40), np.int64)
        bodies = {
            "junk": b"junk",
            "another content": pack({"digest": "0" * 16}, similarity=found[0], row=found[1]),
            "too few arrays": pack({"digest": digest}, similarity=found[0]),
            "rows of nothing": pack({"digest": digest}, similarity=found[0], row=found[1] + 2**62),
            "rows below": pack({"digest": digest}, similarity=found[0], row=found[1] - 2),
            "no number": pack({"digest": digest}, similarity=found[0] + np.nan, row=found[1], vector=found[0]),
            "endless": pack({"digest": digest}, similarity=found[0] + np.inf, row=found[1]),
            "as text": pack({"digest": digest}, similarity=found[1], row=found[0]),
            "another shape": pack({"digest": digest}, similarity=found[0][:, :-1], row=found[1]),
        }

        async def answer(body: bytes) -> bytes:
            return bodies[wrong]

        assert coverage(client, store) == (2, 2)
        with monkeypatch.context() as patched:
            patched.setattr(holder, "search", answer)
            patched.setattr(holder, "vectors", answer)
            until(lambda: coverage(client, store, 8) == (1, 2))
            assert client.get("/v1/search", params={"product_id": _of_shard(store, 1)}).status_code == 503
            assert 'vitrine_shard_answers_total{outcome="lost",shard="1"}' in client.get("/metrics").text
        until(lambda: coverage(client, store, 9) == (2, 2))


def test_the_map_is_read_again(store: Storefront, tmp_path: Path) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(Served(shard_app(store, s))) for s in (0, 1))
        shards = tmp_path / "shards.txt"
        shards.write_text(f"{first.url}  # the first\n")
        app = gateway_app(store, [], shard_map=str(shards), shard_patience_s=0.1)
        client = stack.enter_context(TestClient(app))
        until(lambda: client.get("/readyz").status_code == 200)
        assert coverage(client, store) == (1, 2)
        shards.write_text(f"{first.url}\n{second.url}\n")
        until(lambda: coverage(client, store) == (2, 2))
        shards.write_text("no address\n")
        until(lambda: "is not an address" in client.get("/v1/version").json()["shard_map_error"])
        assert coverage(client, store) == (2, 2)


def test_a_gateway_flips_only_when_every_shard_holds_the_version(store: Storefront, tmp_path: Path) -> None:
    behind = Storefront(tmp_path / "behind", store.catalog, store.ids, store.photos, store.vectors)
    store.copy(behind.release)  # the second shard follows aliases of its own, which this test moves later
    with ExitStack() as stack:
        urls = [stack.enter_context(Served(shard_app(s, n))).url for n, s in enumerate((store, behind))]
        client = stack.enter_context(TestClient(gateway_app(store, urls)))
        until(lambda: client.get("/readyz").status_code == 200)
        state = lambda: client.get("/v1/version").json()  # noqa: E731
        store.point(green="2", live="2")
        until(lambda: "does not know version 2" in state()["slots"]["green"]["reason"])
        assert state()["slots"]["green"]["state"] == "loading"
        assert (state()["live"]["version"], coverage(client, store)) == ("1", (2, 2))
        behind.point(green="2")
        until(lambda: state()["live"]["version"] == "2")
        answer = client.post("/v1/search", json={"vector": store.vectors["2"][3].tolist()}).json()
        assert (answer["version"]["index"], answer["coverage"]) == ("2", {"shards_ok": 2, "shards_total": 2})


def test_a_version_that_a_shard_cannot_load_fails_with_the_shards_reason(store: Storefront) -> None:
    with running(store, (0,), (1,)) as (client, _):
        second = next(s for s in store.manifest("2")["segments"] if s["shard"] == 1)
        corrupt(store.release / "files" / second["index"]["sha256"])
        store.point(green="2", live="2")
        green = lambda: client.get("/v1/version").json()["slots"]["green"]  # noqa: E731
        until(lambda: green()["state"] == "failed")
        assert "shard 1 could not load version 2" in green()["reason"]
        assert "corrupt" in green()["reason"]
        assert coverage(client, store) == (2, 2)


def test_a_shard_holds_its_own_segments_and_answers_for_no_other_version(store: Storefront) -> None:
    other = next(s for s in store.manifest("1")["segments"] if s["shard"] == 1)
    (store.release / "files" / other["index"]["sha256"]).unlink()
    app = shard_app(store, 0)
    with TestClient(app) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        state = client.get("/shard/state").json()
        assert state["shards"] == [0]
        digest = state["versions"]["1"]["digest"]
        xq = store.vectors["1"][:1]

        def ask(query: np.ndarray | None = None, **header: object) -> httpx.Response:
            arrays = {} if query is None else {"query": query}
            return client.post(SEARCH, content=pack({"version": "1", "digest": digest, "shard": 0, "k": 3} | header, **arrays))

        answer, found = unpack(ask(xq).content)
        assert (answer["digest"], found["similarity"].shape, found["row"].dtype) == (digest, (1, 3), np.dtype("<i8"))
        assert (ask(xq, version="2").status_code, ask(xq, digest="0" * 16).status_code, ask(xq, shard=1).status_code) == (
            409,
        ) * 3
        assert ask(xq[:, :4]).status_code == 400
        assert ask().status_code == 400
        assert ask(xq, k=0).status_code == 400
        assert ask(xq, filter={"price": {"near": 3}}).status_code == 422
        assert ask(xq, left_ms=-1).status_code == 504
        huge = (10**400, float("inf"), float("nan"), -(10**400), "soon", [], {})
        assert {ask(xq, k=value).status_code for value in huge} == {400}
        assert {ask(xq, left_ms=value).status_code for value in huge if value} == {400}
        assert {ask(xq, shard=value).status_code for value in (*huge, -1, 0.5)} == {409}
        assert {ask(xq, version=value).status_code for value in huge} == {409}
        assert {ask(xq, **{name: "\ud800"}).status_code for name in ("version", "digest", "shard")} == {409}
        assert {ask(np.full_like(xq, value)).status_code for value in (np.nan, np.inf)} == {400}
        assert ask(np.zeros(xq.shape, np.int64) + 2**62).status_code == 400
        assert client.post(SEARCH, content=b"junk").status_code == 400
        rows = pack({"version": "1", "digest": digest, "shard": 0}, row=np.array([len(store.ids)]))
        assert client.post(VECTORS, content=rows).status_code == 500
        with pytest.MonkeyPatch.context() as patch:  # a bug of ours, which the gateway asks another process about
            patch.setattr(ShardSearcher, "search", lambda *_: np.zeros(3) + np.zeros(4))
            assert ask(xq).status_code == 500
        assert client.get(SEARCH).status_code == 405
        assert client.get("/v1/version").json()["role"] == "shard"
        assert 'vitrine_shard_search_seconds_count{shard="0",version="1"}' in client.get("/metrics").text
