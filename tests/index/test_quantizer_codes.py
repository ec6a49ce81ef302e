"""A fast scan gets the kind of codes that finds more of its own training vectors, and each vector one that errs across it."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from serving.index.faiss_engine import omp_threads
from tasks.index.coarse import ivf_view
from tasks.index.quantizer_codes import ALONG, CodesComparison, choose_codes, code_adder, refine_codes
from tasks.index.template import make_index

D, N, LISTS = 32, 6_000, 64
FAST = f"IVF{LISTS},PQ8x4fs,Refine(SQfp16)"


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    """(N, D): many views of each of 16 photos, near each other and far from those of every other photo."""
    rng = np.random.default_rng(0)
    photos = unit(rng.standard_normal((16, D)))
    return unit(photos[rng.integers(0, 16, N)] + 0.03 * rng.standard_normal((N, D)))


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    """(N, D): broad overlapping kinds on few directions, where all neighbours share most of the error."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((8, 6, D))
    kind = rng.integers(0, 8, N)
    return unit(np.einsum("ni,nid->nd", rng.standard_normal((N, 6)), directions[kind]))


def trained(vectors: np.ndarray) -> tuple[faiss.Index, CodesComparison]:
    index = make_index(D, FAST)
    index.train(vectors)
    trial = choose_codes(index, vectors, 7)
    assert trial is not None
    return index, trial


def filled(index: faiss.Index, xb: np.ndarray, along: float = ALONG, block: int = 2_500) -> faiss.Index:
    """A copy of an empty index with vectors in it, added in blocks."""
    made = faiss.clone_index(index)
    with code_adder(made, along) as add:
        for start in range(0, len(xb), block):
            add(xb[start : start + block])
    return made


def recall(index: faiss.Index, xb: np.ndarray, xq: np.ndarray, along: float = ALONG, within: int = 50) -> float:
    """Of the true ten, those among so many best estimates, all lists scanned."""
    base = filled(ivf_view(index), xb, along)
    found = base.search(xq, within, params=faiss.SearchParametersIVF(nprobe=LISTS))[1]
    truth = faiss.knn(xq, xb, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def test_views_of_photos_get_codes_of_residuals(views: np.ndarray) -> None:
    index, trial = trained(views[:5_000])
    assert ivf_view(index).by_residual
    assert trial.of_residuals > trial.of_vectors + 0.1
    plain = make_index(D, FAST)
    plain.train(views[:5_000])
    assert recall(index, views[:5_000], views[5_000:5_200]) > recall(plain, views[:5_000], views[5_000:5_200]) + 0.1


def test_the_kind_that_finds_more_is_kept(kinds: np.ndarray) -> None:
    index, trial = trained(kinds[:5_000])
    assert ivf_view(index).by_residual == (trial.of_residuals > trial.of_vectors)
    other = make_index(D, FAST.replace("fs", "fs" if ivf_view(index).by_residual else "fsr"))
    other.train(kinds[:5_000])
    assert recall(index, kinds[:5_000], kinds[5_000:]) >= recall(other, kinds[:5_000], kinds[5_000:])


def test_codes_that_err_across_find_more(views: np.ndarray) -> None:
    index, _ = trained(views[:5_000])
    across, nearest = (recall(index, views[:5_000], views[5_000:5_200], along, 20) for along in (ALONG, 1.0))
    assert across > nearest + 0.05


@pytest.mark.parametrize(
    "factory",
    [
        FAST,
        f"IVF{LISTS},PQ16x4fsr,Refine(SQ8)",
        "IVF300,PQ4x4fs",
        f"IVF{LISTS},PQ8x4fs",
        f"IVF{LISTS},PQ8x4fs_64",
        "IVF16,Flat",
        "SQ8",
        f"IVF{LISTS},PQ8x4",
    ],
)
def test_filling_writes_what_faiss_writes_where_no_direction_counts_more(factory: str, views: np.ndarray) -> None:
    index = make_index(D, factory)
    index.train(views)
    plain = faiss.clone_index(index)
    for start in range(0, N, 2_500):
        plain.add(views[start : start + 2_500])
    assert faiss.serialize_index(filled(index, views, along=1.0)).tobytes() == faiss.serialize_index(plain).tobytes()


def test_an_odd_number_of_codes_is_packed_as_faiss_packs_it() -> None:
    x = unit(np.random.default_rng(2).standard_normal((3_000, 30)))
    index = make_index(30, "IVF16,PQ15x4fsr")
    index.train(x)
    plain = faiss.clone_index(index)
    plain.add(x)
    assert faiss.serialize_index(filled(index, x, along=1.0)).tobytes() == faiss.serialize_index(plain).tobytes()


def test_neither_threads_nor_blocks_change_the_bytes(views: np.ndarray) -> None:
    index, _ = trained(views)
    with omp_threads(1):
        one = faiss.serialize_index(filled(index, views)).tobytes()
    with omp_threads(3):
        three = faiss.serialize_index(filled(index, views, block=1_000)).tobytes()
    assert one == three


def test_no_other_last_word_would_err_less(views: np.ndarray) -> None:
    """The word that was turned last is the best beside the others, and no code has become worse than the nearest one."""
    pq = faiss.ProductQuantizer(D, 8, 4)
    pq.train(views)
    books = faiss.vector_to_array(pq.centroids).reshape(8, 16, 4)
    nearest = pq.compute_codes(views[:500])
    codes = refine_codes(nearest, views[:500], views[:500], books, ALONG)

    def error(codes: np.ndarray) -> np.ndarray:
        e = views[:500] - pq.decode(codes)
        return (e**2).sum(axis=1) + (ALONG - 1) * (e * views[:500]).sum(axis=1) ** 2

    assert (error(codes) <= error(nearest) + 1e-6).all()
    assert error(codes).mean() < error(nearest).mean()
    for word in range(16):
        other = codes.copy()
        other[:, -1] = (other[:, -1] & 15) | word << 4
        assert (error(codes) <= error(other) + 1e-6).all()


def test_nothing_is_added_where_adding_fails(views: np.ndarray) -> None:
    index, _ = trained(views)

    def cut_short() -> None:
        with code_adder(index) as add:
            add(views[:100])
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        cut_short()
    assert ivf_view(index).ntotal == 0


def test_vectors_of_zeros_and_no_vectors_are_added(views: np.ndarray) -> None:
    index, _ = trained(views)
    with code_adder(index) as add:
        add(np.zeros((0, D), np.float32))
        add(np.zeros((3, D), np.float32))
    assert index.ntotal == 3


def test_the_kind_survives_the_file_and_refined_answers_are_right(views: np.ndarray, tmp_path: Path) -> None:
    index, _ = trained(views[:5_000])
    faiss.write_index(index, str(tmp_path / "template.faiss"))
    again = faiss.read_index(str(tmp_path / "template.faiss"))
    assert ivf_view(again).by_residual
    assert again.ntotal == 0
    again = filled(again, views)
    params = faiss.IndexRefineSearchParameters(k_factor=100, base_index_params=faiss.SearchParametersIVF(nprobe=LISTS))
    own = again.search(views[:100], 10, params=params)[1]
    assert (own == np.arange(100)[:, None]).any(axis=1).all()


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,RaBitQfs,Refine(SQ8)", "IVF16,PQ8x4", "HNSW8,SQ8"])
def test_other_indexes_have_no_choice(factory: str, views: np.ndarray) -> None:
    index = make_index(D, factory)
    index.train(views[:2_000])
    before = faiss.serialize_index(index).tobytes()
    assert choose_codes(index, views[:2_000], 7) is None
    assert faiss.serialize_index(index).tobytes() == before


def test_what_it_says() -> None:
    assert str(CodesComparison(of_residuals=0.98, of_vectors=0.7)).startswith("codes of residuals hold 0.980 of the ten nearest")
    assert str(CodesComparison(of_residuals=0.5, of_vectors=0.7)).startswith("codes of vectors hold 0.700")
