"""The contract over Pinecone's official client and a server of our own that follows its published API: not the real service.

make e2e-engines runs it in an environment of its own, with that client.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tasks.errors import VitrineError
from tests.engines.contract import Builder, D, EngineContract, K, Made
from tests.engines.servers import EngineServer

if TYPE_CHECKING:
    from tests.engines.pinecone_stand_in import PineconeStandIn

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    from tests.engines.pinecone_stand_in import PineconeStandIn

    stand_in = PineconeStandIn(D)
    yield stand_in  # type: ignore[misc]
    stand_in.kill()


class TestAgainstAStandInNotTheRealPinecone(EngineContract):
    engine = "pinecone"

    def test_an_index_of_another_metric_is_refused(self, made: Made, builder: Builder, server: "PineconeStandIn") -> None:
        assert made.manifest.engine
        server.metric = "euclidean"
        try:
            with pytest.raises(VitrineError, match="metric dotproduct"):
                builder.collections().complete(made.manifest.engine.collection, "", made.manifest.engine.rows)
        finally:
            server.metric = "dotproduct"

    def test_a_vector_of_somebody_else_is_no_answer(self, made: Made, server: "PineconeStandIn", xq: np.ndarray) -> None:
        assert made.manifest.engine
        searcher, held = made.open(), server.spaces[made.manifest.engine.collection]
        before = searcher.search(xq[:1], K)
        held["foreign"] = (2 * xq[0]).tolist()
        try:
            found = searcher.search(xq[:1], K)
        finally:
            del held["foreign"]
        np.testing.assert_array_equal(found.rows, before.rows)

    @pytest.mark.parametrize("dim", [128, 512, 1024])
    def test_a_request_of_vectors_is_no_larger_than_pinecone_takes(self, dim: int) -> None:
        from serving.index.pinecone_engine import ids_of
        from tasks.index.pinecone_collections import rows_of_request

        x = np.random.default_rng(0).standard_normal((rows_of_request(dim), dim)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        vectors = [{"id": n, "values": v} for n, v in zip(ids_of(range(len(x))), x.tolist(), strict=True)]
        assert len(json.dumps({"vectors": vectors}, separators=(",", ":"))) <= 2_000_000
