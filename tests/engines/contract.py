"""What every engine must do: the same tests over each. A test module subclasses `EngineContract` with its server, or `SearchContract` for
an engine in the replica's own process."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.circuit_breaker import PAUSE_S
from serving.contract.files import ContractError, FileRef
from serving.contract.keys import shard_of
from serving.contract.manifest import IndexManifest
from serving.index.collection import Endpoint
from serving.index.engine import EngineUnavailable
from serving.index.pictures import Pictures
from serving.index.searcher import Searcher
from tasks.embed.job import EmbedResult
from tasks.errors import VitrineError
from tasks.index.build import BuiltShard, build_shard
from tasks.index.choice import IndexConfig
from tasks.index.delta import Changes, add_delta
from tasks.index.engine_collections import Collections, open_collections
from tasks.index.template import Template, train_template
from tasks.index.verify_version import check_index
from tasks.index.version_manifest import with_golden
from tasks.pipelines.collection_steps import begin_collection, complete_collection, engine_ref, holds_shard, upload_of
from tasks.settings import Settings
from tests.engines.servers import EngineServer
from tests.index.shop import Shop, brute_force, make_shop, manifest_of, write_vectors

N, D, K = 3000, 24, 20
RECALL = 0.95


@dataclass(frozen=True)
class Made:
    """A version over a collection: its manifest and the folder that its files lie in."""

    shop: Shop
    folder: Path
    settings: Settings
    template: Template
    manifest: IndexManifest
    endpoint: Endpoint

    def locate(self, ref: FileRef) -> Path:
        return self.folder / ref.path

    def open(self, manifest: IndexManifest | None = None) -> Searcher:
        return Searcher.open(manifest or self.manifest, self.locate, endpoint=self.endpoint)

    def rows_of(self, searcher: Searcher) -> np.ndarray:
        """The shop's vectors in the order of the searcher's rows."""
        order = np.argsort(self.shop.keys)
        return self.shop.vectors[order[np.searchsorted(self.shop.keys, searcher.features.key, sorter=order)]]


class Builder:
    """Makes versions of a shop in one engine, as the steps of rebuild_index do."""

    def __init__(self, engine: str, family: str, server: EngineServer, home: Path) -> None:
        self.engine, self.family, self.server, self.home = engine, family, server, home

    def settings(self, name: str) -> Settings:
        folder = self.home / name
        return replace(
            Settings(), home=folder, store=str(folder / "data"), engine=self.engine, engine_address=self.server.endpoint.address,
            engine_token=self.server.endpoint.token, index_family=self.family,
        )  # fmt: skip

    def collections(self) -> Collections:
        return open_collections(self.engine, self.server.endpoint)

    def begin(self, shop: Shop, name: str) -> tuple[Template, Settings]:
        chosen = self.settings(name)
        (Path(shop.vectors_uri) / "_manifest.json").write_text(json.dumps({"made": name}))
        config = IndexConfig(shards=shop.shards, family=self.family, engine=self.engine)
        template = train_template(shop.vectors_uri, config, chosen.home)
        embedded = EmbedResult(name, shop.vectors_uri, str(chosen.home / "embeddings"), "", D, shop.shards, N, N, 0, N, 0, {})
        return begin_collection(template, shop.encoder, embedded, chosen, name), chosen

    def build(self, shop: Shop, template: Template, chosen: Settings, shard: int) -> BuiltShard:
        folder = chosen.home / f"shard-{shard}"
        return build_shard(shop.vectors_uri, shop.snapshot.uri, template, shard, folder, upload_of(template, shard, chosen))

    def make(self, shop: Shop, name: str) -> Made:
        template, chosen = self.begin(shop, name)
        built = [self.build(shop, template, chosen, shard) for shard in range(shop.shards)]
        complete_collection(template, built, chosen)
        manifest = manifest_of(shop, built, {"family": template.family, "ef": 256, "nprobe": 64})
        manifest = manifest.model_copy(update={"engine": engine_ref(built)})
        endpoint = replace(chosen.endpoint, timeout_s=self.server.endpoint.timeout_s)
        return Made(shop, chosen.home, chosen, template, manifest, endpoint)


class CountingCollections:
    """Counts the blocks that are put; fails at the block `fails_at`, and before it calls `before_failure`."""

    def __init__(self, inner: Collections, fails_at: int = -1) -> None:
        self.inner, self.fails_at, self.puts = inner, fails_at, 0

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        if self.puts == self.fails_at:
            raise ConnectionError("the network is gone")
        self.puts += 1
        self.inner.put(name, first, vectors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def recall(found: np.ndarray, oracle: np.ndarray) -> float:
    """Share of places whose similarity (nq, k) is at least the oracle's of the last place."""
    return float((found >= oracle[:, -1:] - 1e-5).mean())


class SearchContract:
    """What an engine must do whose index is a file of the version."""

    engine: ClassVar[str]
    family: ClassVar[str] = ""

    def test_a_search_finds_the_nearest_with_their_similarities(self, made: Made, xq: np.ndarray) -> None:
        searcher = made.open()
        x = made.rows_of(searcher)
        found = searcher.search(xq, K)
        assert recall(found.similarity, brute_force(x, xq, K)) >= RECALL
        exact = np.take_along_axis(xq @ x.T, found.rows, axis=1)
        np.testing.assert_allclose(found.similarity, exact, atol=1e-5)
        assert all(len(set(row)) == K for row in found.rows)

    def test_the_exact_search_and_stored_vectors_are_those_uploaded(self, made: Made, xq: np.ndarray) -> None:
        searcher = made.open()
        x = made.rows_of(searcher)
        np.testing.assert_allclose(searcher.exact(xq, K).similarity, brute_force(x, xq, K), atol=1e-5)
        for row in (0, N // 2, N - 1):
            np.testing.assert_array_equal(searcher.vector(row), x[row])

    @pytest.mark.parametrize("share", [0.5, 0.01, 0.001])
    def test_a_filter_excludes_exactly_and_finds_all_there_is(self, made: Made, xq: np.ndarray, share: float) -> None:
        searcher = made.open()
        allowed = np.random.default_rng(5).random(N) < share
        found, oracle = searcher.search(xq, K, allowed), brute_force(made.rows_of(searcher), xq, K, allowed)
        there = found.rows >= 0
        assert allowed[found.rows[there]].all()
        assert (there.sum(axis=1) == min(K, allowed.sum())).all()
        assert recall(np.where(there, found.similarity, 2), np.where(np.isfinite(oracle), oracle, -2)) >= (
            RECALL if share == 0.5 else 1
        )

    def test_titles_in_the_base_answer_words_and_no_photo(self, made: Made, xq: np.ndarray) -> None:
        opened = made.open()
        places = np.where(np.random.default_rng(6).random(N) < 0.3, -1, 0).astype(np.int16)
        segments = [
            replace(s, pictures=Pictures(np.arange(s.rows, dtype=np.int32), places[s.start : s.start + s.rows]))
            for s in opened.segments
        ]
        searcher = Searcher(opened.manifest, segments, opened.features, 1, opened.remote)
        x = made.rows_of(searcher)
        for words, shown in ((False, places >= 0), (True, None)):
            found = searcher.search(xq, K, words=words)
            assert (found.rows >= 0).all()
            assert shown is None or shown[found.rows].all()
            assert recall(found.similarity, brute_force(x, xq, K, shown)) >= RECALL
            np.testing.assert_allclose(searcher.exact(xq, K, words=words).similarity, brute_force(x, xq, K, shown), atol=1e-5)

    def test_deltas_and_deletes_lie_over_the_engines_base(self, made: Made, xq: np.ndarray) -> None:
        nearest = made.open().exact(xq[:1], 3)
        searcher = made.open()
        gone, moved = searcher.features.key[nearest.rows[0, :2]]
        shard = int(shard_of(np.array([moved]), made.shop.shards)[0])
        table = pq.read_table(made.folder / f"shard-{shard}" / f"base-{shard:05d}.parquet")
        row = table.filter(pa.array(table["key"].to_numpy() == moved))
        changes = Changes(row, xq[1:2], np.array([gone]))
        segments = add_delta(made.manifest, changes, made.folder, prefix="")
        newer = made.open(made.manifest.model_copy(update={"segments": segments}))
        before, after = newer.search(xq[:1], K), newer.search(xq[1:2], K)
        assert not {gone, moved} & set(newer.features.key[before.rows[0]])
        assert newer.features.key[after.rows[0, 0]] == moved
        assert after.similarity[0, 0] == pytest.approx(1, abs=1e-5)
        assert recall(before.similarity, newer.exact(xq[:1], K).similarity) >= RECALL
        assert newer.live_rows == N - 1

    def test_two_versions_answer_side_by_side_and_the_older_one_again(
        self, made: Made, builder: Builder, xq: np.ndarray, tmp_path: Path
    ) -> None:
        second = builder.make(make_shop(tmp_path / "shop", n=500, d=D, seed=4), "second")
        old, new = made.open(), second.open()
        assert recall(new.search(xq, K).similarity, brute_force(second.rows_of(new), xq, K)) >= RECALL
        self.show(second, builder)
        again = made.open()  # a rollback opens it anew
        assert recall(again.search(xq, K).similarity, brute_force(made.rows_of(again), xq, K)) >= RECALL
        assert recall(old.search(xq, K).similarity, brute_force(made.rows_of(old), xq, K)) >= RECALL

    def show(self, made: Made, builder: Builder) -> None:
        """Moves the alias for people, where the engine has one."""

    def test_wrong_dimensions_are_refused(self, made: Made) -> None:
        wider = made.manifest.model_copy(update={"encoder": made.manifest.encoder.model_copy(update={"dim": D + 1})})
        with pytest.raises(ContractError, match="dimension"):
            made.open(wider)

    def test_nan_is_refused_before_anything_is_uploaded(self, builder: Builder, tmp_path: Path) -> None:
        broken = make_shop(tmp_path / "shop", n=60, d=D)
        vectors = broken.vectors.copy()
        vectors[:, 3] = np.nan
        write_vectors(Path(broken.vectors_uri), broken.keys, vectors, broken.shards)
        template, chosen = builder.begin(broken, "nan")
        with pytest.raises(VitrineError, match="NaN"):
            builder.build(broken, template, chosen, 0)
        self.nothing_was_uploaded(template, builder)

    def nothing_was_uploaded(self, template: Template, builder: Builder) -> None:
        """Where the engine holds collections, that of the template is empty."""


class EngineContract(SearchContract):
    """What an engine must do that holds collections, in a process of its own."""

    def show(self, made: Made, builder: Builder) -> None:
        assert made.manifest.engine
        builder.collections().point("vitrine_live", made.manifest.engine.collection)

    def nothing_was_uploaded(self, template: Template, builder: Builder) -> None:
        assert builder.collections().count(template.collection, 0, 60) == 0
        builder.collections().drop(template.collection)

    def test_a_killed_upload_goes_on_where_it_was(self, builder: Builder, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tasks.index.upload.BLOCK_ROWS", 200)
        template, chosen = builder.begin(shop, "killed")
        failing = CountingCollections(builder.collections(), fails_at=4)
        monkeypatch.setattr("tasks.pipelines.collection_steps.open_collections", lambda *_: failing)
        with pytest.raises(ConnectionError):
            builder.build(shop, template, chosen, 0)
        going_on = CountingCollections(builder.collections())
        monkeypatch.setattr("tasks.pipelines.collection_steps.open_collections", lambda *_: going_on)
        first, second = (builder.build(shop, template, chosen, shard) for shard in range(2))
        assert going_on.puts + failing.puts == sum(-(-b.rows // 200) for b in (first, second))
        complete_collection(template, [first, second], chosen)
        going_on.drop(template.collection)
        assert not holds_shard(first, template, chosen)

    def test_an_engine_killed_in_the_middle_of_an_upload_is_filled_after_its_restart(
        self, builder: Builder, server: EngineServer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tasks.index.upload.BLOCK_ROWS", 500)
        template, chosen = builder.begin(shop, "restarted")
        put = type(builder.collections()).put

        def kill_at_the_second(self: Any, name: str, first: int, vectors: np.ndarray) -> None:
            if first == 500:
                server.kill()
            put(self, name, first, vectors)

        with monkeypatch.context() as patched:
            patched.setattr(type(builder.collections()), "put", kill_at_the_second)
            with pytest.raises(Exception, match=r"\w"):
                builder.build(shop, template, chosen, 0)
        server.start()
        built = [builder.build(shop, template, chosen, shard) for shard in range(2)]
        complete_collection(template, built, chosen)
        builder.collections().drop(template.collection)

    def test_an_engine_killed_under_search_is_away_and_then_back(self, made: Made, server: EngineServer, xq: np.ndarray) -> None:
        searcher = made.open()
        breaker = searcher.remote.breaker  # type: ignore[union-attr]
        now = [0.0]
        breaker.clock = lambda: now[0]
        before = searcher.search(xq, K).rows
        server.kill()
        try:
            for _ in range(3):
                with pytest.raises(EngineUnavailable, match="does not answer"):
                    searcher.search(xq, K)
            assert "does not answer" in searcher.away()
            with pytest.raises(EngineUnavailable):
                made.open()
        finally:
            server.start()
        now[0] += PAUSE_S
        assert searcher.away() == ""
        again = searcher.search(xq, K).rows
        assert np.mean([len(set(a) & set(b)) / K for a, b in zip(before, again, strict=True)]) >= RECALL

    def test_another_number_of_rows_is_refused(self, made: Made) -> None:
        assert made.manifest.engine
        fewer = made.manifest.model_copy(update={"engine": made.manifest.engine.model_copy(update={"rows": N - 1})})
        with pytest.raises(ContractError, match=f"holds {N} rows"):
            made.open(fewer)

    def test_a_collection_deleted_behind_our_back_is_named(self, builder: Builder, shop: Shop, xq: np.ndarray) -> None:
        lost = builder.make(shop, "lost")
        searcher = lost.open()
        assert lost.manifest.engine
        builder.collections().drop(lost.manifest.engine.collection)
        with pytest.raises((EngineUnavailable, ContractError)):
            searcher.search(xq, K)
        with pytest.raises(ContractError, match="has no collection"):
            lost.open()
        with pytest.raises(VitrineError, match="clear the tasks build_shard"):
            complete_collection(lost.template, [replace_rows(lost, s) for s in range(2)], lost.settings)

    def test_the_verifier_reads_the_collection_back(self, made: Made, builder: Builder, xq: np.ndarray) -> None:
        manifest = with_golden(made.manifest, made.open(), xq, made.folder, "", ".")

        def of_vectors() -> str:
            done = check_index(manifest, made.locate, endpoint=made.settings.endpoint)
            return next(f"{c.passed} {c.detail}" for c in done if c.name == "vectors")

        assert of_vectors().startswith("True")
        assert made.manifest.engine
        name, held = made.manifest.engine.collection, made.open()
        kept = held.segments[0].engine.vectors(np.array([7]))  # type: ignore[union-attr]
        builder.collections().put(name, 7, np.roll(kept, 1, axis=1))
        assert "False pgvector no longer holds".replace("pgvector", self.engine) in of_vectors()
        builder.collections().put(name, 7, kept)
        assert of_vectors().startswith("True")


def replace_rows(made: Made, shard: int) -> BuiltShard:
    """The record of a shard of a version, as its build returned it."""
    segment = made.manifest.segments[shard]
    assert made.manifest.engine
    return BuiltShard(
        shard, segment.rows, segment.family, str(made.folder), None, segment.table, digest="0" * 64,
        collection=made.manifest.engine.collection,
    )  # fmt: skip
