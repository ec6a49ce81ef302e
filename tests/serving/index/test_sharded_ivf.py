"""Shards of one template answer as one index over all rows."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from serving.index.engine import Mask
from serving.index.faiss_engine import FaissEngine, omp_threads
from serving.index.merge import Neighbors
from serving.index.searcher import Searcher
from serving.index.sharded_ivf import ShardedIvf, share_training
from tests.index.shop import clustered, make_shop, open_shop

D, N, SHARDS = 32, 3000, 4
SHARED = [
    "IVF16,Flat", "RR32,IVF16,PQ8x4", "IVF16,PQ4x4fs,Refine(SQ8)", "IVF16,PQ4x4fsr,Refine(SQ8)", "IVF16,RaBitQ",
    "IVF16,RaBitQfs,Refine(SQfp16)",
]  # fmt: skip
FINE, OTHER, GRAPH = SHARED[2], SHARED[0], "HNSW16,SQ8"


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(4), N, D)


def trained(factory: str, vectors: np.ndarray) -> faiss.Index:
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    with omp_threads(1):  # threads that wait for each other are slow on a busy machine
        index.train(vectors)
    return index


def filled(empty: faiss.Index, vectors: np.ndarray) -> FaissEngine:
    index = faiss.clone_index(empty)
    if len(vectors):
        index.add(vectors)
    return FaissEngine(index)


@pytest.mark.parametrize("factory", SHARED)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_shards_answer_as_one_index(factory: str, share: float, vectors: np.ndarray) -> None:
    empty = trained(factory, vectors)
    one = filled(empty, vectors)
    shards = ShardedIvf([filled(empty, part) for part in np.split(vectors, [500, 500, 2000])])
    assert shards.rows == N
    xq = clustered(np.random.default_rng(5), 20, D)
    mask = None if share == 1 else Mask(np.random.default_rng(6).random(N) < share)
    params = {"nprobe": 4, "k_factor": N / 50}  # everything scanned is refined: coarse estimates of few bits are often equal
    a, b = one.search(xq, 50, mask, params), shards.search(xq, 50, mask, params)
    np.testing.assert_allclose(a.similarity, b.similarity, atol=1e-5)
    assert mask is None or mask.allowed[b.rows[b.rows >= 0]].all()


def test_only_the_best_of_all_estimates_are_refined(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that are equal to the last of them, and without the rest of what each shard gave."""
    empty = trained("IVF16,PQ16x4fs,Refine(SQ8)", vectors)
    shards = ShardedIvf([filled(empty, part) for part in np.split(vectors, [500, 500, 2000])])
    refined: list[int] = []
    nearest = FaissEngine.nearest

    def counted(engine: FaissEngine, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        refined.append(len(positions))
        return nearest(engine, xq, positions, k)

    monkeypatch.setattr(FaissEngine, "nearest", counted)
    for x in clustered(np.random.default_rng(7), 10, D):
        refined.clear()
        found = shards.search(x[None], 50, None, {"nprobe": 16, "k_factor": 4})
        assert (found.rows >= 0).all()
        assert len(refined) == 3  # the one without rows is not asked
        assert 200 <= sum(refined) < 230


def test_stored_vectors_are_compared_in_their_shard(vectors: np.ndarray) -> None:
    empty = trained(FINE, vectors)
    shards = ShardedIvf([filled(empty, part) for part in np.split(vectors, [500, 500, 2000])])
    rows = np.array([2999, 0, 499, 500, 2000, 1999, 7])
    found = shards.nearest(vectors[rows], rows, 1)
    np.testing.assert_array_equal(found.rows[:, 0], rows)
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-2)
    assert not (shards.nearest(vectors[:2], np.zeros(0, np.int64), 3).rows >= 0).any()


def test_only_what_was_trained_as_one_is_searched_as_one(vectors: np.ndarray) -> None:
    half = vectors[: N // 2]
    empty = trained(FINE, vectors)
    assert share_training([filled(empty, half), filled(empty, half[:10])])
    assert not share_training([filled(empty, half), filled(trained(FINE, half), half)])
    assert not share_training([filled(empty, half), filled(trained(OTHER, vectors), half)])
    assert not share_training([filled(trained(GRAPH, vectors), half)] * 2)


def test_a_version_of_shards_searches_them_as_one(tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop", n=4 * N, shards=SHARDS)
    searcher = open_shop(shop, tmp_path / "built", "ivf_fs_sq8", {"nprobe": 256, "k_factor": N / 5})
    assert [len(p.segments) for p in searcher.groups] == [SHARDS]
    xq = clustered(np.random.default_rng(5), 10, D)
    found, exact = searcher.search(xq, 20), searcher.exact(xq, 20)
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=1e-3)
    alone = [
        Searcher.open(searcher.manifest, lambda ref: tmp_path / "built" / ref.path, shard=shard).search(xq, 20)
        for shard in range(4)
    ]
    best = -np.sort(-np.concatenate([f.similarity for f in alone], axis=1))[:, :20]
    np.testing.assert_allclose(found.similarity, best, atol=1e-3)
