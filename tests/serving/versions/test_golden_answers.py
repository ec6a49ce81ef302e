"""Golden answers are given again, or a version is not loaded."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.files import ContractError
from serving.contract.manifest import CANDIDATES
from serving.index.searcher import Searcher
from serving.versions.golden_answers import check_golden, write_golden
from tests.index.shop import clustered, make_shop, open_shop


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    shop = make_shop(tmp_path_factory.mktemp("shop"), n=6000)
    return open_shop(shop, tmp_path_factory.mktemp("built"), "ivf_fs_sq8", {"nprobe": 16, "k_factor": 1})


@pytest.fixture
def golden(tmp_path: Path, searcher: Searcher) -> Path:
    write_golden(tmp_path / "golden.npz", searcher, clustered(np.random.default_rng(3), 12, 32))
    return tmp_path / "golden.npz"


def changed(golden: Path, without: str = "", **arrays: np.ndarray) -> None:
    held = dict(np.load(golden))
    np.savez(golden, **{n: a for n, a in (held | arrays).items() if n != without})


def test_what_was_written_is_given_again(golden: Path, searcher: Searcher) -> None:
    check_golden(golden, searcher)
    assert int(np.load(golden)["candidates"]) == CANDIDATES


@pytest.mark.parametrize("by", [-0.01, 0.01])
def test_other_similarities_are_refused(by: float, golden: Path, searcher: Searcher) -> None:
    changed(golden, similarity=np.load(golden)["similarity"] + np.float32(by))
    with pytest.raises(ContractError, match=r"similarities differ by 0\.01"):
        check_golden(golden, searcher)


def test_what_is_no_file_of_golden_answers_is_refused(golden: Path, searcher: Searcher) -> None:
    whole = golden.read_bytes()
    for content in (b"hello" * 100, b"", whole[: len(whole) // 2]):
        golden.write_bytes(content)
        with pytest.raises(ContractError, match=r"golden\.npz: not a file of golden answers"):
            check_golden(golden, searcher)
    golden.write_bytes(whole)
    changed(golden, "keys")
    with pytest.raises(ContractError, match="keys"):
        check_golden(golden, searcher)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("vectors", np.zeros((12, 16), np.float32), "the index has dimension 32"),
        ("vectors", np.full((12, 32), np.nan, np.float32), "NaN or infinity"),
        ("similarity", np.full((12, 10), np.nan, np.float32), "similarities differ by nan"),
        ("similarity", np.zeros((3, 10), np.float32), r"where \(12, 10\) is expected"),
    ],
)
def test_golden_answers_that_cannot_be_compared_are_refused(
    array: str, value: np.ndarray, message: str, golden: Path, searcher: Searcher
) -> None:
    changed(golden, **{array: value})
    with pytest.raises(ContractError, match=message):
        check_golden(golden, searcher)


def test_another_key_in_an_early_place_is_refused(golden: Path, searcher: Searcher) -> None:
    keys = np.load(golden)["keys"].copy()
    keys[2, 0] = 7
    changed(golden, keys=keys)
    with pytest.raises(ContractError, match="query 2 no longer finds key 7"):
        check_golden(golden, searcher)


def test_answers_of_before_to_which_ten_were_asked_may_be_surpassed(golden: Path, searcher: Searcher) -> None:
    xq = np.load(golden)["vectors"]
    ten = searcher.search(xq, 10)
    keys = searcher.features.key[ten.rows]
    assert (ten.similarity < np.load(golden)["similarity"] - 1e-3).any(), "ten estimates alone find less"
    changed(golden, "candidates", keys=keys, similarity=ten.similarity)
    check_golden(golden, searcher)
    changed(golden, similarity=ten.similarity + np.float32(0.5))
    with pytest.raises(ContractError, match="similarities are less by"):
        check_golden(golden, searcher)
