"""The contract over ScaNN, in process: nothing is uploaded, and there is no server to be killed."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from serving.cluster.shard_set import offsets
from serving.index.collection import NOWHERE, Endpoint
from serving.index.merge import Neighbors, merge
from serving.index.scann_engine import ScannEngine
from serving.index.searcher import Searcher
from tasks.index.verify_version import check_index
from tasks.pipelines import collection_steps, common, rebuild_index
from tasks.registry import ENCODER_MODEL
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.engines.contract import K, Made, SearchContract
from tests.engines.rebuilt import rebuilt
from tests.engines.servers import EngineServer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow over SQLite, in this process
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dataclass(frozen=True)
class NoServer:
    endpoint: Endpoint = NOWHERE

    def kill(self) -> None: ...
    def start(self) -> None: ...


@pytest.fixture(scope="module")
def server() -> EngineServer:
    return NoServer()


class TestTree(SearchContract):
    engine = "scann"

    def test_its_files_belong_to_the_version(self, made: Made) -> None:
        assert made.manifest.engine is None
        assert [s.index.path for s in made.manifest.segments if s.index] == [
            "shard-0/base-00000.scann",
            "shard-1/base-00001.scann",
        ]
        assert all(isinstance(s.engine, ScannEngine) and s.engine.tree for s in made.open().segments)

    def test_shard_processes_find_what_a_whole_replica_finds_or_better(self, made: Made, xq: np.ndarray) -> None:
        parts: list[Neighbors] = []
        for shard, start in offsets(made.manifest).items():
            found = Searcher.open(made.manifest, made.locate, shard=shard).search(xq, K)
            parts.append(Neighbors(found.similarity, np.where(found.rows < 0, -1, found.rows + start)))
        assert (merge(parts, K).similarity >= made.open().search(xq, K).similarity - 1e-5).all()


def test_a_shop_moves_to_scann_and_is_refreshed_there(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    live.registry.set_alias(ENCODER_MODEL, "champion", live.registry.index_manifest(live.base).encoder.version)
    live.environment |= {"VITRINE_ENGINE": "scann"}
    live.use()
    monkeypatch.setattr(rebuild_index, "embed_config", lambda *given: replace(common.embed_config(*given), direct=1000))
    collection_steps.check_engine(common.settings())

    def found(version: str) -> set[str]:
        manifest = live.registry.index_manifest(version)
        assert [(c.name, c.detail) for c in check_index(manifest, live.registry.file) if not c.passed] == []
        searcher = Searcher.open(manifest, live.registry.file)
        return set(searcher.features.table["product_id"].filter(searcher.live()).to_pylist())

    version = rebuilt("night")
    manifest = live.registry.index_manifest(version)
    assert manifest.engine is None
    assert {s.family for s in manifest.segments} == {"scann_tree_ah"}
    assert found(version) == found(live.base)
    live.shop.point(live=version, green=version, previous=live.base)
    live.send(live.upsert(3, 1, seed=99), live.upsert(100, 2, seed=98), live.delete(5, 3))
    newer = live.refresh("hour").version
    assert found(newer) == (found(version) | {"p100"}) - {"p005"}
