import pytest

from serving.index.searcher import Searcher
from tasks.index.families import FAMILIES
from tests.index.shop import Shop, make_shop, open_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """600 products of dimension 32 in two shards: too few for more than 16 lists."""
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def wide_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """12,000 products, enough to train every family on."""
    return make_shop(tmp_path_factory.mktemp("wide"), n=12_000)


@pytest.fixture(scope="session")
def searchers(wide_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Searcher]:
    """The wide shop in every family, each at its most thorough parameters."""
    return {
        name: open_shop(wide_shop, tmp_path_factory.mktemp(name), name, dict(family.grid[-1]))
        for name, family in FAMILIES.items()
    }
