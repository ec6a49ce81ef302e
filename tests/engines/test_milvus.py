from collections.abc import Iterator

import pytest

from tests.engines.contract import Builder, EngineContract, Made, N
from tests.engines.servers import EngineServer, milvus_server
from tests.index.shop import Shop

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("milvus")]


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with milvus_server() as engine:
        yield engine


@pytest.fixture(scope="class")
def made(builder: Builder, shop: Shop) -> Made:
    """The version that the contract searches: by its index from the first query on, not by scanning what is still to be loaded."""
    first = builder.make(shop, "first")
    assert first.manifest.engine
    held = builder.collections()
    loaded = held.client.list_loaded_segments(first.manifest.engine.collection)  # type: ignore[attr-defined]
    assert sum(s.num_rows for s in loaded) == N
    assert all(s.index_id for s in loaded)
    return first


class TestHnsw(EngineContract):
    engine = "milvus"
