from collections.abc import Iterator

import pytest

from tests.engines.contract import Builder, EngineContract, N
from tests.engines.servers import EngineServer, milvus_server
from tests.index.shop import Shop

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("milvus")]


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with milvus_server() as engine:
        yield engine


class TestHnsw(EngineContract):
    engine = "milvus"

    def test_a_completed_collection_is_searched_by_its_index_from_the_first_query_on(self, builder: Builder, shop: Shop) -> None:
        fresh = builder.make(shop, "settled")
        assert fresh.manifest.engine
        held = builder.collections()
        loaded = held.client.list_loaded_segments(fresh.manifest.engine.collection)  # type: ignore[attr-defined]
        assert sum(s.num_rows for s in loaded) == N
        assert all(s.index_id for s in loaded)
        held.drop(fresh.manifest.engine.collection)
