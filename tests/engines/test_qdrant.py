"""The contract over Qdrant's official client and a server of our own that answers out of its local mode: not a real Qdrant."""

from collections.abc import Iterator

import pytest

from tests.engines.contract import Builder, EngineContract, Made
from tests.engines.servers import EngineServer

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
