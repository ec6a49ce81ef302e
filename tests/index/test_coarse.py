"""Adding through a flat quantiser: every vector in the list of its nearest centroid, and the graph is back afterwards."""

import faiss
import numpy as np
import pytest

from serving.index.faiss_engine import omp_threads
from tasks.index.coarse import fast_adding, fast_training, gpus, ivf_view
from tests.index.shop import clustered

D, N = 16, 800


@pytest.mark.parametrize(
    "factory", ["IVF32_HNSW4,Flat", "RR16,IVF32_HNSW4,PQ4x4", "IVF32_HNSW4,PQ4x4fs,Refine(SQ8)", "IVF32,Flat"]
)
def test_vectors_find_the_list_of_their_nearest_centroid(factory: str) -> None:
    vectors = clustered(np.random.default_rng(1), N, D)
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    with omp_threads(1), fast_training(index):
        index.train(vectors)
    lists = ivf_view(index)
    before = type(faiss.downcast_index(lists.quantizer))
    with omp_threads(1), fast_adding(index):
        index.add(vectors)
    assert type(faiss.downcast_index(lists.quantizer)) is before
    held = np.full(N, -1)
    for number in range(lists.nlist):
        size = lists.invlists.list_size(number)
        held[faiss.rev_swig_ptr(lists.invlists.get_ids(number), size)] = number
    rotated = faiss.downcast_VectorTransform(index.chain.at(0)).apply(vectors) if factory.startswith("RR") else vectors
    centroids = lists.quantizer.reconstruct_n(0, lists.nlist)
    nearness = rotated @ centroids.T
    np.testing.assert_allclose(nearness[np.arange(N), held], nearness.max(axis=1), atol=1e-6)
    assert (index.search(vectors[:5], 3)[1] >= 0).all()


def test_indexes_without_lists_are_left_alone() -> None:
    index = faiss.index_factory(D, "HNSW8,SQ8", faiss.METRIC_INNER_PRODUCT)
    assert ivf_view(index) is None
    with fast_training(index), fast_adding(index):
        assert index.ntotal == 0
    assert gpus() == 0 or faiss.get_num_gpus() > 0
