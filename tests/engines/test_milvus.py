from collections.abc import Iterator

import pytest

from tests.engines.contract import EngineContract
from tests.engines.servers import EngineServer, milvus_server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("milvus")]


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with milvus_server() as engine:
        yield engine


class TestHnsw(EngineContract):
    engine = "milvus"
