"""A graph's rows in groups: near ones side by side, and nothing else changed."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from serving.contract.segments import read_rows
from serving.index.searcher import omp_threads
from tasks.index.graph_reordering import group
from tasks.index.template import make_index
from tests.index.shop import Shop, build_all, clustered

D, N = 32, 3000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(4), N, D)


def graph(vectors: np.ndarray, factory: str = "HNSW16,SQfp16") -> faiss.Index:
    index = make_index(D, factory)
    with omp_threads(1):
        index.train(vectors)
        index.add(vectors)
    return index


def closeness(vectors: np.ndarray) -> float:
    """Mean cosine of rows that follow each other."""
    return float((vectors[1:] * vectors[:-1]).sum(axis=1).mean())


@pytest.mark.parametrize("factory", ["HNSW16,SQfp16", "HNSW32,SQ8", "HNSW32,Flat"])
def test_near_rows_follow_each_other_and_searches_find_the_same(factory: str, vectors: np.ndarray) -> None:
    index, xq = graph(vectors, factory), clustered(np.random.default_rng(5), 40, D)
    before, stored = index.search(xq, 20), index.reconstruct_n(0, N)
    order = group(index)
    assert order is not None
    assert sorted(order.tolist()) == list(range(N))
    np.testing.assert_array_equal(index.reconstruct_n(0, N), stored[order])
    after = index.search(xq, 20)
    np.testing.assert_array_equal(after[0], before[0])
    assert np.mean(order[after[1]] == before[1]) > 0.99  # equal similarities may change places
    assert closeness(stored[order]) > closeness(stored) + 0.2


def test_the_same_rows_are_grouped_alike(vectors: np.ndarray) -> None:
    orders = [group(graph(vectors)) for _ in range(2)]
    np.testing.assert_array_equal(*orders)


@pytest.mark.parametrize(("factory", "rows"), [("HNSW16,SQfp16", 127), ("HNSW16,SQfp16", 0), ("Flat", N), ("IVF16,Flat", N)])
def test_few_rows_and_other_indexes_are_left_as_they_are(factory: str, rows: int, vectors: np.ndarray) -> None:
    index = make_index(D, factory)
    with omp_threads(1):
        index.train(vectors)
    if rows:
        index.add(vectors[:rows])
    assert group(index) is None
    np.testing.assert_array_equal(index.search(vectors[:5], 1)[1][:, 0], np.arange(5) if rows else [-1] * 5)


def test_rows_that_are_all_equal_are_grouped_too(vectors: np.ndarray) -> None:
    order = group(graph(np.repeat(vectors[:1], 500, axis=0)))
    assert order is not None
    assert sorted(order.tolist()) == list(range(500))


def test_a_graph_s_table_is_in_the_order_of_its_rows(wide_shop: Shop, tmp_path: Path) -> None:
    _, built = build_all(wide_shop, tmp_path, "hnsw16_fp16")
    place = {int(k): i for i, k in enumerate(wide_shop.keys)}
    for shard in built:
        index = faiss.read_index(str(Path(shard.uri) / shard.index.path))
        table = read_rows(Path(shard.uri) / shard.table.path)
        keys = table["key"].to_numpy()
        assert (np.diff(keys) < 0).any()
        own = wide_shop.vectors[[place[k] for k in keys.tolist()]]
        assert (index.reconstruct_n(0, len(keys)) * own).sum(axis=1).min() > 0.999
        assert [wide_shop.ids[place[k]] for k in keys.tolist()] == table["product_id"].to_pylist()
