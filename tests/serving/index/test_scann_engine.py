"""ScaNN's files and the engine over them; whole versions: tests/engines/test_scann.py."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.files import ContractError
from serving.index.engine import Mask
from serving.index.scann_engine import ScannEngine, open_scann
from tasks.index.scann_files import SMALL, ScannShard
from tests.index.shop import clustered

D, K = 16, 10
THOROUGH = {"nprobe": 1000, "k_factor": 8}


def written(folder: Path, x: np.ndarray) -> Path:
    shard = ScannShard(*x.shape)
    with shard.adding() as add:
        for start in range(0, len(x), 700):
            add(x[start : start + 700])
    return folder / shard.write(folder, "base").path


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return clustered(np.random.default_rng(1), 2 * SMALL, D)


@pytest.fixture(scope="module")
def engine(x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> ScannEngine:
    return open_scann(written(tmp_path_factory.mktemp("scann"), x), D, len(x))


def test_stored_vectors_are_read_from_the_file_in_place(engine: ScannEngine, x: np.ndarray) -> None:
    assert engine.tree
    places = np.array([5, 0, len(x) - 1])
    np.testing.assert_array_equal(engine.vectors(places), x[places])
    found = engine.nearest(x[:3], np.arange(len(x)), 1)
    assert found.rows[:, 0].tolist() == [0, 1, 2]


def test_all_leaves_find_the_nearest_and_similarities_are_exact(engine: ScannEngine, x: np.ndarray) -> None:
    found = engine.search(x[:20], K, None, THOROUGH)
    truth = -np.sort(-(x[:20] @ x.T), axis=1)[:, :K]
    assert (found.similarity >= truth[:, -1:] - 1e-5).mean() >= 0.99
    np.testing.assert_allclose(found.similarity, np.take_along_axis(x[:20] @ x.T, found.rows, axis=1), atol=1e-5)


def test_few_leaves_that_hold_too_little_say_so(engine: ScannEngine, x: np.ndarray) -> None:
    found = engine.search(x[:4], len(x), None, {"nprobe": 1})
    assert (found.rows[:, -1] == -1).all()
    assert np.isneginf(found.similarity[:, -1]).all()
    wider = engine.search(x[:4], len(x), None, {"nprobe": 1}, effort=1000)
    assert all(set(row) == set(range(len(x))) for row in wider.rows.tolist())


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_a_mask_never_leaks(engine: ScannEngine, x: np.ndarray, share: float) -> None:
    mask = Mask(np.random.default_rng(2).random(len(x)) < share)
    found = engine.search(x[:20], K, mask, THOROUGH)
    assert mask.allowed[found.rows[found.rows >= 0]].all()
    assert (found.rows >= 0).mean() >= 0.95


@pytest.mark.parametrize("rows", [0, 1, 5, 60])
def test_few_rows_are_compared_one_by_one(x: np.ndarray, rows: int, tmp_path: Path) -> None:
    small = open_scann(written(tmp_path, x[:rows]), D, rows)
    assert not small.tree
    assert small.vectors(np.arange(rows)).shape == (rows, D)
    if rows:
        found = small.search(x[:2], rows, None, {})
        np.testing.assert_allclose(found.similarity[0], -np.sort(-(x[:1] @ x[:rows].T)[0]), atol=1e-6)


def test_a_file_that_does_not_fit_is_named(x: np.ndarray, tmp_path: Path) -> None:
    path = written(tmp_path, x[:60])
    with pytest.raises(ContractError, match=r"base.scann: 60 vectors of dimension 16, where the manifest says 61 of 16"):
        open_scann(path, D, 61)
    path.write_bytes(b"not a tar")
    with pytest.raises(ContractError, match=r"base.scann: ScaNN cannot read it"):
        open_scann(path, D, 60)


def test_a_query_of_another_dimension_is_refused(engine: ScannEngine) -> None:
    with pytest.raises(ValueError, match="dimension 3"):
        engine.search(np.zeros((1, 3), np.float32), 1, None, {})
