"""The contract over Weaviate's official client and a server of our own that follows its published API: not a real Weaviate.

make e2e-engines runs it in an environment of its own, with that client.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engines.contract import Builder, EngineContract, K, Made
from tests.engines.servers import EngineServer

if TYPE_CHECKING:
    from tests.engines.weaviate_stand_in import WeaviateStandIn

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the client's own, of what it is made of
]


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    from tests.engines.weaviate_stand_in import WeaviateStandIn

    stand_in = WeaviateStandIn()
    yield stand_in
    stand_in.kill()


class TestAgainstAStandInNotARealWeaviate(EngineContract):
    engine = "weaviate"

    def test_the_alias_is_moved(self, made: Made, builder: Builder) -> None:
        assert made.manifest.engine
        held = builder.collections()
        for name in (made.manifest.engine.collection,) * 2:
            held.point("vitrine_live", name)
        (alias,) = held.client.alias.list_all().values()  # type: ignore[attr-defined]
        assert (alias.alias, alias.collection) == ("Vitrine_live", name.capitalize())

    def test_an_object_of_somebody_else_is_no_answer(self, made: Made, server: "WeaviateStandIn", xq: np.ndarray) -> None:
        assert made.manifest.engine
        searcher, held = made.open(), server.classes[made.manifest.engine.collection.capitalize()]
        before, foreign = searcher.search(xq[:1], K), "ffffffff-0000-4000-8000-000000000007"
        held[foreign] = 2 * xq[0]
        try:
            found = searcher.search(xq[:1], K)
        finally:
            del held[foreign]
        np.testing.assert_array_equal(found.rows, before.rows)
