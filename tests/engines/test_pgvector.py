import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import psycopg
import pytest

from tasks.index.collections import ALIAS, recorded_collections
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
