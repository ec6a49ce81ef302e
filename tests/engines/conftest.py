"""The fixtures of the engine contract; the module of an engine has the fixture `server`."""

import numpy as np
import pytest

from tests.engines.contract import Builder, D, Made, N
from tests.engines.servers import EngineServer
from tests.index.shop import Shop, clustered, make_shop


@pytest.fixture(scope="class")
def builder(request: pytest.FixtureRequest, server: EngineServer, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    kind = request.cls
    return Builder(kind.engine, kind.family, server, tmp_path_factory.mktemp(kind.engine))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"), n=N, d=D)


@pytest.fixture(scope="class")
def made(builder: Builder, shop: Shop) -> Made:
    return builder.make(shop, "first")


@pytest.fixture
def xq() -> np.ndarray:
    return clustered(np.random.default_rng(11), 12, D)
