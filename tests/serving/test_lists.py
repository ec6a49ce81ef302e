"""Several queries' lists are found by one product of matrices, and nothing else changes."""

import faiss
import numpy as np
import pytest

from serving import lists
from serving.engine import Mask
from serving.faiss_engine import FaissEngine, omp_threads
from serving.lists import Lists
from serving.stored import asked
from tests.index.shop import clustered

D, N = 32, 3000
FACTORIES = ["IVF16,Flat", "IVF16,PQ8x4", "IVF16,PQ8x4fs,Refine(SQ8)", "IVF16,RaBitQ", "IVF16,RaBitQfs,Refine(SQfp16)"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(4), N, D)


@pytest.fixture(autouse=True)
def _few_centroids_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "WORTH_BYTES", 1)


def built(factory: str, vectors: np.ndarray) -> faiss.Index:
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    with omp_threads(1):
        index.train(vectors)
    index.add(vectors)
    return index


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_several_queries_together_find_what_each_finds_alone(factory: str, share: float, vectors: np.ndarray) -> None:
    engine = FaissEngine(built(factory, vectors))
    assert engine.lists is not None
    assert engine.lists.reads_once(8)
    xq = clustered(np.random.default_rng(5), 8, D)
    mask = None if share == 1 else Mask(np.random.default_rng(6).random(N) < share)
    params = {"nprobe": 3, "k_factor": N / 200}  # refined: more than any three lists hold, as coarse estimates are often equal
    found = engine.search(xq, 200, mask, params)
    for n, x in enumerate(xq):
        alone = engine.search(x[None], 200, mask, params)
        np.testing.assert_allclose(found.similarity[n], alone.similarity[0], atol=1e-4)
    assert mask is None or mask.allowed[found.rows[found.rows >= 0]].all()


@pytest.mark.parametrize("nprobe", [1, 5, 16])
def test_the_nearest_lists_come_best_first(nprobe: int, vectors: np.ndarray) -> None:
    index = built("IVF16,Flat", vectors)
    found = Lists(index).nearest(vectors[:10], nprobe)
    exact = asked(index.quantizer, vectors[:10], nprobe)
    np.testing.assert_array_equal(found.rows, exact.rows)
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=1e-5)


def test_one_query_and_hundreds_are_left_to_faiss(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Lists(built("IVF16,Flat", vectors))
    assert [n for n in (1, 2, 8, 64, 65, 1000) if of.reads_once(n)] == [2, 8, 64]
    monkeypatch.setattr(lists, "WORTH_BYTES", 16 * D * 4 + 1)
    assert not Lists(of.index).reads_once(8)


def test_centroids_in_a_graph_or_by_distance_are_left_to_faiss(vectors: np.ndarray) -> None:
    assert not Lists(built("IVF16_HNSW8,Flat", vectors)).reads_once(8)
    far = faiss.IndexIVFFlat(faiss.IndexFlatL2(D), D, 16, faiss.METRIC_INNER_PRODUCT)
    with omp_threads(1):
        far.train(vectors)
    assert not Lists(far).reads_once(8)


def test_an_index_without_lists_of_its_own_has_none(vectors: np.ndarray) -> None:
    for factory in ("Flat", "HNSW8,Flat", "OPQ8_32,IVF16,PQ8x4"):
        engine = FaissEngine(built(factory, vectors))
        assert engine.lists is None
        assert engine.search(vectors[:8], 5, None, {}).rows.shape == (8, 5)
