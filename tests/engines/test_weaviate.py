"""The contract over Weaviate's official client and a server of our own that follows its published API: not a real Weaviate.

make e2e-engines runs it in an environment of its own, with that client.
"""

from collections.abc import Iterator

import pytest

from tests.engines.contract import Builder, EngineContract, Made
from tests.engines.servers import EngineServer

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
