"""The steps of rebuild_index and refresh_index over pgvector, and the way back to FAISS files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest

from serving.index.searcher import Searcher
from tasks.errors import VitrineError
from tasks.index.verify_version import check_index
from tasks.pipelines import collection_steps, common, rebuild_index
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tasks.settings import Settings
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.engines.rebuilt import rebuilt
from tests.engines.servers import EngineServer, pgvector_server

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with pgvector_server() as engine:
        yield engine


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"engine": "oracle"}, "'oracle' is not known; choose one of faiss, pgvector"),
        ({"engine": "pgvector", "index_family": "hnsw_sq8"}, "pgvector has no index family 'hnsw_sq8'"),
        ({"engine": "pgvector"}, "needs VITRINE_ENGINE_ADDRESS"),
        ({"engine": "pgvector", "engine_address": "postgresql://shop:secret@127.0.0.1:1/x"}, "does not answer at"),
    ],
)
def test_an_engine_that_cannot_be_used_is_said_before_anything_is_embedded(wrong: dict[str, str], why: str) -> None:
    with pytest.raises(VitrineError, match=why) as raised:
        collection_steps.check_engine(replace(Settings(), **wrong))  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)


def test_an_engine_that_answers_is_as_good_as_faiss(server: EngineServer) -> None:
    collection_steps.check_engine(Settings())
    collection_steps.check_engine(replace(Settings(), engine="pgvector", engine_address=server.endpoint.address))


def test_a_shop_moves_to_pgvector_is_refreshed_there_and_goes_back(
    server: EngineServer, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    live.registry.set_alias(ENCODER_MODEL, "champion", live.registry.index_manifest(live.base).encoder.version)
    live.registry.endpoint = endpoint = server.endpoint
    live.environment |= {"VITRINE_ENGINE": "pgvector", "VITRINE_ENGINE_ADDRESS": endpoint.address}
    live.use()
    monkeypatch.setattr(rebuild_index, "embed_config", lambda *given: replace(common.embed_config(*given), direct=1000))

    def found(version: str) -> set[str]:
        manifest = live.registry.index_manifest(version)
        done = check_index(manifest, live.registry.file, endpoint=endpoint)
        assert [(c.name, c.detail) for c in done if not c.passed] == []
        searcher = Searcher.open(manifest, live.registry.file, endpoint=endpoint)
        return set(searcher.features.table["product_id"].filter(searcher.live()).to_pylist())

    version = rebuilt("night")
    manifest = live.registry.index_manifest(version)
    assert manifest.engine is not None
    assert (manifest.engine.name, manifest.engine.rows, manifest.search["family"]) == ("pgvector", 60, "pgvector_hnsw")
    assert all(s.index is None for s in manifest.segments)
    assert found(version) == found(live.base)

    live.shop.point(live=version, green=version, previous=live.base)
    collection_steps.show_live(live.registry, common.settings())
    with psycopg.connect(endpoint.address) as connection:
        assert connection.execute("SELECT count(*) FROM vitrine_live").fetchone() == (60,)
    live.send(live.upsert(3, 1, seed=99), live.upsert(100, 2, seed=98), live.delete(5, 3))
    newer = live.refresh("hour").version
    after = live.registry.index_manifest(newer)
    assert after.engine == manifest.engine, "an hourly version is on the same collection"
    assert found(newer) == (found(version) | {"p100"}) - {"p005"}
    searcher = Searcher.open(after, live.registry.file, endpoint=endpoint)
    x = searcher.exact(np.eye(1, searcher.dim, dtype=np.float32), 5)
    np.testing.assert_allclose(searcher.search(np.eye(1, searcher.dim, dtype=np.float32), 5).similarity, x.similarity, atol=1e-5)

    live.environment |= {"VITRINE_ENGINE": "faiss"}
    live.shop.point(live=live.base, blue=live.base)
    assert found(live.base) == found(version), "the FAISS version is as it was"
    again = live.registry.alias(INDEX_MODEL, "live")
    assert again is not None
    assert again.version == live.base
