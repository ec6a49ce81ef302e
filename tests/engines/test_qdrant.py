"""The contract over Qdrant's official client and a server of our own that answers out of its local mode: not a real Qdrant."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engines.contract import Builder, EngineContract, K, Made
from tests.engines.servers import EngineServer

if TYPE_CHECKING:
    from tests.engines.qdrant_stand_in import QdrantStandIn

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    from tests.engines.qdrant_stand_in import QdrantStandIn

    stand_in = QdrantStandIn()
    yield stand_in  # type: ignore[misc]
    stand_in.kill()


class TestAgainstLocalModeNotARealQdrant(EngineContract):
    engine = "qdrant"

    def test_the_alias_is_moved(self, made: Made, builder: Builder) -> None:
        assert made.manifest.engine
        held = builder.collections()
        for name in (made.manifest.engine.collection,) * 2:
            held.point("vitrine_live", name)
        aliases = held.client.get_aliases().aliases  # type: ignore[attr-defined]
        assert [(a.alias_name, a.collection_name) for a in aliases] == [("vitrine_live", made.manifest.engine.collection)]

    def test_a_point_of_somebody_else_is_no_answer(self, made: Made, server: "QdrantStandIn", xq: np.ndarray) -> None:
        from qdrant_client import models

        assert made.manifest.engine
        searcher, name, foreign = made.open(), made.manifest.engine.collection, "00000000-0000-0000-0000-000000000007"
        before = searcher.search(xq[:1], K)
        server.held.upsert(name, [models.PointStruct(id=foreign, vector=(2 * xq[0]).tolist())])
        try:
            found = searcher.search(xq[:1], K)
        finally:
            server.held.delete(name, [foreign])
        np.testing.assert_array_equal(found.rows, before.rows)

    def test_many_queries_are_several_requests_that_qdrant_takes(self) -> None:
        from serving.index.qdrant_engine import BLOCK, NUMBERS, queries_of_request

        assert queries_of_request(512, BLOCK) * (512 + BLOCK) <= NUMBERS
        assert queries_of_request(512, 0) > queries_of_request(512, BLOCK) > 1
        assert queries_of_request(2 * NUMBERS, 0) == 1
