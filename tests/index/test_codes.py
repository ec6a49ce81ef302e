"""A fast scan gets the kind of codes that finds more of its own training vectors."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from tasks.index.build import make_index
from tasks.index.coarse import lists_of
from tasks.index.codes import Trial, choose_codes

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


def trained(vectors: np.ndarray) -> tuple[faiss.Index, Trial]:
    index = make_index(D, FAST)
    index.train(vectors)
    trial = choose_codes(index, vectors, 7)
    assert trial is not None
    return index, trial


def recall(index: faiss.Index, xb: np.ndarray, xq: np.ndarray) -> float:
    """Of the true ten, those within the estimates' fifty, all lists scanned."""
    base = faiss.clone_index(lists_of(index))
    base.add(xb)
    found = base.search(xq, 50, params=faiss.SearchParametersIVF(nprobe=LISTS))[1]
    truth = faiss.knn(xq, xb, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def test_views_of_photos_get_codes_of_residuals(views: np.ndarray) -> None:
    index, trial = trained(views[:5_000])
    assert lists_of(index).by_residual
    assert trial.of_residuals > trial.of_vectors + 0.1
    plain = make_index(D, FAST)
    plain.train(views[:5_000])
    assert recall(index, views[:5_000], views[5_000:5_200]) > recall(plain, views[:5_000], views[5_000:5_200]) + 0.1


def test_the_kind_that_finds_more_is_kept(kinds: np.ndarray) -> None:
    index, trial = trained(kinds[:5_000])
    assert lists_of(index).by_residual == (trial.of_residuals > trial.of_vectors)
    other = make_index(D, FAST.replace("fs", "fs" if lists_of(index).by_residual else "fsr"))
    other.train(kinds[:5_000])
    assert recall(index, kinds[:5_000], kinds[5_000:]) >= recall(other, kinds[:5_000], kinds[5_000:])


def test_the_kind_survives_the_file_and_refined_answers_are_right(views: np.ndarray, tmp_path: Path) -> None:
    index, _ = trained(views[:5_000])
    faiss.write_index(index, str(tmp_path / "template.faiss"))
    again = faiss.read_index(str(tmp_path / "template.faiss"))
    assert lists_of(again).by_residual
    assert again.ntotal == 0
    again.add(views)
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
    assert str(Trial(of_residuals=0.98, of_vectors=0.7)).startswith("codes of residuals hold 0.980 of the ten nearest")
    assert str(Trial(of_residuals=0.5, of_vectors=0.7)).startswith("codes of vectors hold 0.700")
