"""Stored vectors are compared by what they decode to, and a search gives the similarities that comparing gives."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from serving.index.coarse import selector
from serving.index.code_distance import MAX_QUERIES
from serving.index.engine import Mask
from serving.index.faiss_engine import FaissEngine, omp_threads
from serving.index.refine import BLOCK, StoredVectors, as_bfloat16
from tasks.index.template import make_index
from tests.index.shop import clustered

D, N = 32, 3 * BLOCK
KINDS = [
    "Flat",
    "SQ8",
    "SQfp16",
    "HNSW8,SQfp16",
    "HNSW8,SQbf16",
    "IVF16,Flat",
    "OPQ8_32,IVF16,PQ8",
    "IVF16,PQ16x4fs,Refine(SQ8)",
    "IVF16,PQ16x4fs,Refine(SQfp16)",
]
REFINED = KINDS[-2:]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(4), N, D)


@pytest.fixture(scope="module")
def opened(vectors: np.ndarray) -> dict[str, FaissEngine]:
    def filled(kind: str) -> FaissEngine:
        index = make_index(D, kind)
        index.train(vectors)
        index.add(vectors)
        return FaissEngine(index)

    with omp_threads(1):
        return {kind: filled(kind) for kind in KINDS}


@pytest.fixture
def queries() -> np.ndarray:
    return clustered(np.random.default_rng(5), MAX_QUERIES + 1, D)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, MAX_QUERIES, MAX_QUERIES + 1])
@pytest.mark.parametrize("rows", [0, 1, 30, BLOCK, BLOCK + 1])
def test_the_nearest_are_those_of_the_vectors_read_back(
    kind: str, count: int, rows: int, opened: dict[str, FaissEngine], queries: np.ndarray
) -> None:
    engine, xq, k = opened[kind], queries[:count], min(rows, 50)
    positions = np.random.default_rng(rows).permutation(N)[:rows]
    found = engine.nearest(xq, positions, 50)
    assert found.rows.shape == found.similarity.shape == (count, k)
    if not rows:
        return
    similarity = engine.store.round_queries(xq) @ engine.vectors(positions).T
    np.testing.assert_allclose(found.similarity, -np.sort(-similarity, axis=1)[:, :k], atol=1e-5)
    where = {int(p): i for i, p in enumerate(positions)}
    places = [[where[int(r)] for r in row] for row in found.rows]
    np.testing.assert_allclose(np.take_along_axis(similarity, np.array(places), 1), found.similarity, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_gives_the_similarities_that_comparing_gives(
    kind: str, opened: dict[str, FaissEngine], queries: np.ndarray
) -> None:
    """To 1e-5, a tenth of what golden answers may differ by between machines."""
    engine = opened[kind]
    found = engine.search(queries, 20, None, {"nprobe": 16, "ef": 100, "k_factor": 4})
    for x, rows, similarity in zip(queries, found.rows, found.similarity, strict=True):
        np.testing.assert_allclose(engine.nearest(x[None], rows, 20).similarity[0], similarity, atol=1e-5)


def test_rounded_to_bf16_is_what_torch_rounds_to() -> None:
    import torch

    x = np.random.default_rng(3).standard_normal((50, D)).astype(np.float32)
    np.testing.assert_array_equal(as_bfloat16(x), torch.from_numpy(x).bfloat16().float().numpy())
    np.testing.assert_array_equal(as_bfloat16(as_bfloat16(x)), as_bfloat16(x))


def test_a_stored_vector_that_is_no_number_is_said_and_not_passed_over(queries: np.ndarray) -> None:
    vectors = clustered(np.random.default_rng(6), 100, D)
    vectors[7, 3] = np.nan
    index = faiss.index_factory(D, "SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    stored = StoredVectors(index)
    assert stored.nearest(queries[:1], np.arange(8, 100), 5).rows.min() >= 8
    with pytest.raises(ValueError, match="1 of 100 stored vectors have no similarity to the query: NaN or infinite"):
        stored.nearest(queries[:1], np.arange(100), 5)


def test_threads_compare_side_by_side(opened: dict[str, FaissEngine], queries: np.ndarray) -> None:
    stored = StoredVectors(opened["SQ8"].index)
    asked = [np.random.default_rng(n).permutation(N)[: 10 + 37 * (n % 20)] for n in range(400)]
    expected = [stored.nearest(queries[:1], positions, 10).rows for positions in asked]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda positions: stored.nearest(queries[:1], positions, 10).rows, asked))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", REFINED)
@pytest.mark.parametrize("allowed", [N, 400, 7])
def test_refining_compares_the_best_estimates(
    allowed: int, kind: str, opened: dict[str, FaissEngine], queries: np.ndarray
) -> None:
    engine = opened[kind]
    mask = None if allowed == N else Mask(np.isin(np.arange(N), np.random.default_rng(1).permutation(N)[:allowed]))
    k, params = min(40, allowed), {"nprobe": 3, "k_factor": 4}
    ours = engine.search(queries, k, mask, params)
    estimates = faiss.downcast_index(engine.index).base_index
    scan = faiss.SearchParametersIVF(nprobe=3, **({} if mask is None else {"sel": selector(mask)}))
    for n, x in enumerate(queries):
        rows = estimates.search(x[None], 4 * k, params=scan)[1][0]
        best = engine.nearest(x[None], rows[rows >= 0], k)
        np.testing.assert_allclose(ours.similarity[n][ours.rows[n] >= 0], best.similarity[0], atol=1e-5)
    assert mask is None or mask.allowed[ours.rows[ours.rows >= 0]].all()
    assert allowed != 7 or (ours.rows < 0).any()
    assert engine.search(queries[:0], k, mask, params).rows.shape == (0, k)


@pytest.mark.parametrize("kind", ["Flat", "SQ8", REFINED[0]])
def test_queries_of_another_dimension_are_refused_and_other_layouts_are_not(
    kind: str, opened: dict[str, FaissEngine], queries: np.ndarray
) -> None:
    engine = opened[kind]
    with pytest.raises(ValueError, match="queries of dimension 16, where the index has 32"):
        engine.search(queries[:, :16], 5, None, {})
    expected = engine.search(queries, 5, None, {}).rows
    np.testing.assert_array_equal(engine.search(np.asfortranarray(queries), 5, None, {}).rows, expected)
    np.testing.assert_array_equal(engine.search(queries.astype(np.float64), 5, None, {}).rows, expected)
