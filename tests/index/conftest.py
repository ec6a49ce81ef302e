from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.index.searcher import Searcher
from tasks.index.build import BuiltShard
from tasks.index.families import FAMILIES
from tasks.index.template import Template
from tests.index.shop import Shop, build_all, make_shop, manifest_of


@dataclass(frozen=True)
class Built:
    """A family's template and shards, below `folder`."""

    folder: Path
    template: Template
    shards: list[BuiltShard]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """600 products of dimension 32 in two shards: too few for more than 16 lists."""
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def wide_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """12,000 products, enough to train every family on."""
    return make_shop(tmp_path_factory.mktemp("wide"), n=12_000)


@pytest.fixture(scope="session")
def built(wide_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The wide shop in every family."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    return {name: Built(folder, *build_all(wide_shop, folder, name)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def searchers(wide_shop: Shop, built: dict[str, Built]) -> dict[str, Searcher]:
    """The wide shop in every family, each at its most thorough parameters."""

    def opened(name: str, made: Built) -> Searcher:
        manifest = manifest_of(wide_shop, made.shards, dict(FAMILIES[name].grid[-1]))
        return Searcher.open(manifest, lambda ref: made.folder / ref.path)

    return {name: opened(name, made) for name, made in built.items()}
