"""A shard's part of a version: its own segments, the whole version's handles, its own share of the golden answers."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serving.cluster.shard_server import LINGER_S, ShardError, ShardServer
from serving.cluster.shard_set import ShardSearcher, ShardSet, offsets
from serving.cluster.wire import pack, unpack
from serving.contract.files import ContractError
from serving.contract.manifest import IndexManifest
from serving.index.merge import merge
from serving.index.searcher import Searcher
from serving.ranking.filters import Filter
from serving.ranking.ranker import RankerConfig
from serving.settings import ServingSettings
from serving.versions.golden_answers import check_golden_shard, write_golden
from serving.versions.version_source import FolderSource
from tests.index.shop import build_all, clustered, make_shop, manifest_of
from tests.running import until
from tests.serving.replica.storefront import Storefront, reseal


def part(store: Storefront, *shards: int, version: str = "1") -> ShardSet:
    source = FolderSource(store.release)
    return ShardSet.open(version, source.manifest(version), source.fetch, list(shards))


def test_parts_together_find_what_the_whole_finds(front: Storefront) -> None:
    whole = Searcher.open(IndexManifest(**front.manifest("1")), FolderSource(front.release).fetch)
    held = part(front, 0, 1)
    xq = front.vectors["1"][:6]
    for shard, start in offsets(held.manifest).items():
        rows = held.shards[shard].searcher.rows
        mine = np.zeros(whole.rows, bool)
        mine[start : start + rows] = True
        expected = whole.search(xq, 10, mine)
        found = held.shards[shard].search(xq, 10, None)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)
        np.testing.assert_array_equal(held.shards[shard].vectors(found.rows[0, :2])[1], whole.vector(int(found.rows[0, 1])))
    assert held.products == whole.live_rows


def test_vectors_of_other_shards_are_refused(front: Storefront) -> None:
    held = part(front, 1)
    with pytest.raises(ValueError, match="are not of this shard"):
        held.shards[1].vectors(np.array([0]))


@pytest.mark.parametrize(
    ("wanted", "through"),
    [
        ({"material": "wood"}, 0),
        ({"not": {"material": "wood"}}, 1),
        ({"material": {"exists": False}}, 1),
        ({"material": {"exists": True}}, 0),
    ],
)
def test_a_column_that_only_other_shards_have_is_one_of_which_nothing_is_known(
    front: Storefront, wanted: dict, through: int
) -> None:
    shard = part(front, 0).shards[0]
    found = shard.search(front.vectors["1"][:1], 100, Filter(wanted))
    assert (found.rows >= 0).sum() == through * shard.searcher.rows


def test_a_shard_that_the_version_does_not_have_is_named(front: Storefront) -> None:
    with pytest.raises(ContractError, match="has 2 shards; this process is told to hold shard 7"):
        part(front, 0, 7)


def test_a_part_that_does_not_reproduce_its_golden_answers_is_not_opened(store: Storefront) -> None:
    reseal(store, "1", {"golden": store.manifest("2")["golden"]})
    with pytest.raises(ContractError, match=r"golden answers are not reproduced: shard [01], query"):
        part(store, 0, 1)


def test_a_shard_keeps_what_is_still_asked_for_and_then_lets_go(store: Storefront) -> None:
    now = [0.0]
    settings = ServingSettings(role="shard", shards=("0",), release=str(store.release))
    holder = ShardServer(settings, FolderSource(store.release), clock=lambda: now[0])
    holder.slots.refresh()
    digest = holder.state()["versions"]["1"]["digest"]
    question = pack({"version": "1", "digest": digest, "shard": 0, "k": 3}, query=store.vectors["1"][:1])
    store.point(blue="2", live="2")
    holder.slots.refresh()
    assert holder.slots.live is not None
    assert holder.slots.live.version == "2"
    with pytest.raises(ShardError, match="does not hold version 1"):
        asyncio.run(holder.search(question))
    store.point(blue="1", live="1")
    holder.slots.refresh()
    assert unpack(asyncio.run(holder.search(question)))[0]["digest"] == digest
    store.point(blue="2", live="2")
    holder.slots.refresh()
    for _ in range(3):
        now[0] += LINGER_S - 1
        holder.follow()
        assert holder.state()["versions"]["1"]["state"] == "ready"
        assert unpack(asyncio.run(holder.search(question)))[0]["digest"] == digest
    now[0] += LINGER_S + 1
    holder.follow()
    assert "1" not in holder.state()["versions"]
    until(lambda: holder.slots.draining() == [])  # the pool's thread lets go of its last question a moment after answering it
    holder.close()


@pytest.mark.slow
def test_a_refined_index_in_shards_finds_nearly_the_same_or_better(tmp_path: Path) -> None:
    """Shards apart each refine their own best estimates; a whole index refines only the best of all.

    FastScan rounds its estimates by the lists that it scans together, so a row at the very edge may be lost where shards are apart.
    """
    shop = make_shop(tmp_path / "shop", n=11000, d=64, shards=2)
    _, built = build_all(shop, tmp_path / "built", "ivf_fs_sq8")
    manifest = manifest_of(shop, built, {"family": "ivf_fs_sq8", "nprobe": 8, "k_factor": 1})
    whole = Searcher.open(manifest, lambda ref: tmp_path / "built" / ref.path)
    apart = [
        ShardSearcher(Searcher.open(manifest, lambda ref: tmp_path / "built" / ref.path, 1, s), start, RankerConfig())
        for s, start in offsets(manifest).items()
    ]
    xq = clustered(np.random.default_rng(5), 40, 64)
    for k in (10, 100):
        expected = whole.search(xq, k)
        found = merge([s.search(xq, k, None) for s in apart], k)
        assert (found.similarity >= expected.similarity - 1e-5).mean() > 0.99
        assert found.similarity.mean() >= expected.similarity.mean() - 1e-6
    write_golden(tmp_path / "golden.npz", whole, xq)
    for shard, held in enumerate(apart):
        check_golden_shard(tmp_path / "golden.npz", held.searcher, shard)
