"""The contract over Pinecone's official client and a server of our own that follows its published API: not the real service.

make e2e-engines runs it in an environment of its own, with that client.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tasks.errors import VitrineError
from tests.engines.contract import Builder, D, EngineContract, Made
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
