"""What FAISS remembers of a search in a graph: bytes or a set, with the same answers."""

import ctypes
from collections.abc import Iterator

import faiss
import numpy as np
import pytest

from serving import graphs
from serving.faiss_engine import FaissEngine, omp_threads
from serving.graphs import ROWS_IN_BYTES, remember_in_bytes, threshold
from tasks.index.codes import filling
from tests.index.shop import clustered

D, N = 32, 3000


@pytest.fixture
def graph() -> faiss.Index:
    vectors = clustered(np.random.default_rng(4), N, D)
    index = faiss.index_factory(D, "HNSW16,SQbf16", faiss.METRIC_INNER_PRODUCT)
    with omp_threads(1):
        index.train(vectors)
        index.add(vectors)
    return index


@pytest.fixture
def anew() -> Iterator[None]:
    """As if the process had only begun, and afterwards as it was."""
    before = threshold().value
    remember_in_bytes.cache_clear()
    yield
    threshold().value = before
    remember_in_bytes.cache_clear()


@pytest.mark.usefixtures("anew")
def test_opening_a_graph_raises_the_threshold_and_other_indexes_do_not(graph: faiss.Index) -> None:
    threshold().value = 500_000
    flat = faiss.index_factory(D, "Flat", faiss.METRIC_INNER_PRODUCT)
    FaissEngine(flat)
    assert threshold().value == 500_000
    FaissEngine(graph)
    assert threshold().value == ROWS_IN_BYTES


@pytest.mark.usefixtures("anew")
def test_the_answers_are_the_same_with_a_set(graph: faiss.Index) -> None:
    engine, xq = FaissEngine(graph), clustered(np.random.default_rng(5), 20, D)
    found = {}
    for rows in (0, ROWS_IN_BYTES):
        threshold().value = rows
        found[rows] = engine.search(xq, 50, None, {"ef": 64})
    np.testing.assert_array_equal(found[0].rows, found[ROWS_IN_BYTES].rows)
    np.testing.assert_array_equal(found[0].similarity, found[ROWS_IN_BYTES].similarity)


@pytest.mark.usefixtures("anew")
def test_filling_a_graph_raises_the_threshold_and_makes_the_same_graph() -> None:
    vectors, made = clustered(np.random.default_rng(4), N, D), []
    for rows in (0, ROWS_IN_BYTES):
        index = faiss.index_factory(D, "HNSW16,SQbf16", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        threshold().value = 500_000
        with omp_threads(1), filling(index) as add:
            assert threshold().value == ROWS_IN_BYTES
            threshold().value = rows
            add(vectors)
        made.append(faiss.serialize_index(index))
        remember_in_bytes.cache_clear()
    np.testing.assert_array_equal(*made)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("error", [OSError("no such file"), ValueError("undefined symbol")])
def test_a_faiss_without_the_threshold_is_left_as_it_is(
    error: Exception, graph: faiss.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> ctypes.c_size_t:
        raise error

    monkeypatch.setattr(graphs, "threshold", missing)
    assert not remember_in_bytes()
    assert FaissEngine(graph).search(clustered(np.random.default_rng(5), 1, D), 10, None, {}).rows.shape == (1, 10)
