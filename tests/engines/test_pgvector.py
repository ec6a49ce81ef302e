import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psycopg
import pytest

from serving.index.engine import FilterTooSlow
from serving.index.searcher import Searcher
from tasks.index.engine_collections import ALIAS, recorded_collections
from tasks.release.retention.garbage import _collections, _drop
from tasks.release.retention.policy import Reachable, Retention, reachable
from tests.engines.contract import Builder, EngineContract, Made, N
from tests.engines.servers import EngineServer, pgvector_server
from tests.index.shop import Shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with pgvector_server() as engine:
        yield engine


class TestHnsw(EngineContract):
    engine = "pgvector"

    def test_garbage_is_a_collection_that_nothing_names_and_the_live_one_has_an_alias(
        self, builder: Builder, made: Made, shop: Shop
    ) -> None:
        lost = builder.make(shop, "garbage")
        assert lost.manifest.engine
        store, name, held = lost.settings.store_uri, lost.manifest.engine.collection, builder.collections()
        held.point(ALIAS, name)
        with psycopg.connect(builder.server.endpoint.address) as connection:
            assert connection.execute(f"SELECT count(*) FROM {ALIAS}").fetchone() == (N,)

        def garbage(needed: Reachable, gone: set[str], now: float) -> list[str]:
            return [item.uri for item in _collections(store, needed, gone, Retention(), now)]

        needed, later = reachable({"run": lost.manifest}), time.time() + 8 * 86_400
        assert garbage(needed, {"garbage"}, later) == []
        assert garbage(Reachable(), set(), time.time()) == []
        (folder,) = garbage(Reachable(), {"garbage"}, time.time())
        assert garbage(Reachable(), set(), later) == [folder]
        away = SimpleNamespace(endpoint=replace(builder.server.endpoint, address="postgresql://127.0.0.1:1/x"))
        _drop(away, folder)  # type: ignore[arg-type]
        assert held.count(name, 0, N) == N
        _drop(SimpleNamespace(endpoint=builder.server.endpoint), folder)  # type: ignore[arg-type]
        assert held.count(name, 0, N) == 0
        assert recorded_collections(store) == {}
        assert held.count(made.manifest.engine.collection, 0, N) == N  # type: ignore[union-attr]

    def test_a_frozen_server_ends_a_search_and_leaves_no_thread_waiting(self, made: Made, xq: np.ndarray) -> None:
        quick = replace(made.settings.endpoint, timeout_s=0.3)
        searcher = Searcher.open(made.manifest, made.locate, endpoint=quick)
        connections = searcher.remote.collection.connections  # type: ignore[union-attr]
        with connections.use() as connection:
            backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            assert len(searcher.search(xq[:1], 5).rows[0]) == 5  # another attempt, over a new connection
        finally:
            os.kill(backend, signal.SIGCONT)
        assert connection.closed

    def test_a_comparison_that_takes_too_long_is_no_outage(self, made: Made, xq: np.ndarray) -> None:
        searcher = made.open()
        remote = searcher.remote
        assert remote is not None
        remote.collection.connections.endpoint = replace(remote.collection.connections.endpoint, exact_s=0.001)  # type: ignore[attr-defined]
        for _ in range(4):
            with pytest.raises(FilterTooSlow, match="did not compare"):
                remote.nearest(np.tile(xq, (100, 1)), np.arange(N - 1), 5)
        assert searcher.away() == ""
        assert len(searcher.exact(xq, 5).rows) == len(xq)  # a measurement takes the time it needs

    def test_a_collection_that_is_there_is_not_altered_under_its_searches(self, builder: Builder, made: Made) -> None:
        assert made.manifest.engine
        with psycopg.connect(builder.server.endpoint.address) as reading:
            reading.execute(f"SELECT id FROM {made.manifest.engine.collection} LIMIT 1")
            builder.collections().create(made.manifest.engine.collection, 24, made.template.factory)  # would wait for ever
