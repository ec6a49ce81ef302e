"""The searcher's promises that do not depend on a family."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from serving.contract.files import ContractError, describe
from serving.contract.manifest import IndexManifest
from serving.contract.segments import read_rows, write_rows
from serving.index.searcher import Neighbors, Searcher, merge, omp_threads
from tests.index.shop import Shop, brute_force, build_all, clustered, make_shop, manifest_of, open_shop


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Searcher]:
    shop = make_shop(tmp_path_factory.mktemp("shop"), n=300, shards=4)
    return shop, open_shop(shop, tmp_path_factory.mktemp("built"))


def test_four_shards_answer_like_one_table(opened: tuple[Shop, Searcher]) -> None:
    shop, searcher = opened
    xq = clustered(np.random.default_rng(1), 10, 32)
    np.testing.assert_allclose(searcher.search(xq, 25).similarity, brute_force(shop.vectors, xq, 25), atol=1e-5)
    np.testing.assert_allclose(searcher.exact(xq, 25).similarity, brute_force(shop.vectors, xq, 25), atol=1e-5)


def test_asking_for_more_than_there_is_gives_all_then_nothing(opened: tuple[Shop, Searcher]) -> None:
    _, searcher = opened
    found = searcher.search(clustered(np.random.default_rng(1), 2, 32), 320)
    assert ((found.rows >= 0).sum(axis=1) == 300).all()
    assert (found.rows[:, 300:] == -1).all()
    assert np.isneginf(found.similarity[:, 300:]).all()


def test_a_filter_that_allows_nothing_finds_nothing(opened: tuple[Shop, Searcher]) -> None:
    _, searcher = opened
    found = searcher.search(clustered(np.random.default_rng(1), 2, 32), 5, np.zeros(300, bool))
    assert (found.rows == -1).all()


@pytest.mark.parametrize(
    ("xq", "allowed", "message"),
    [
        (np.zeros((1, 16), np.float32), None, "where (nq, 32) is expected"),
        (np.zeros(32, np.float32), None, "where (nq, 32) is expected"),
        (np.full((1, 32), np.nan, np.float32), None, "NaN or infinity"),
        (np.zeros((1, 32), np.float32), np.ones(299, bool), "where (300,) bool is expected"),
        (np.zeros((1, 32), np.float32), np.ones(300, int), "where (300,) bool is expected"),
    ],
)
def test_what_does_not_fit_is_refused(
    xq: np.ndarray, allowed: np.ndarray | None, message: str, opened: tuple[Shop, Searcher]
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        opened[1].search(xq, 5, allowed)


def test_none_may_be_asked_for_and_fewer_not(opened: tuple[Shop, Searcher]) -> None:
    _, searcher = opened
    xq = clustered(np.random.default_rng(1), 2, 32)
    for search in (searcher.search, searcher.exact):
        assert search(xq, 0).rows.shape == (2, 0)
        with pytest.raises(ValueError, match="-1 nearest rows are asked for, where 0 or more are expected"):
            search(xq, -1)


@pytest.fixture
def built(tmp_path: Path) -> IndexManifest:
    shop = make_shop(tmp_path / "shop", n=60)
    return manifest_of(shop, build_all(shop, tmp_path)[1])


def with_segment(manifest: IndexManifest, **changed: object) -> IndexManifest:
    """The manifest with its first segment changed."""
    first, *others = manifest.segments
    return manifest.model_copy(update={"segments": (first.model_copy(update=changed), *others)})


def with_table(manifest: IndexManifest, folder: Path, table: pa.Table) -> IndexManifest:
    """The manifest with another table for its first segment, under its right checksum."""
    write_rows(folder / "other.parquet", table)
    return with_segment(manifest, table=describe(folder / "other.parquet", "other.parquet"))


def refused(manifest: IndexManifest, folder: Path) -> str:
    with pytest.raises(ContractError) as caught:
        Searcher.open(manifest, lambda ref: folder / ref.path)
    return str(caught.value)


def test_rows_are_compared_with_the_manifest_and_the_file_that_differs_is_named(built: IndexManifest, tmp_path: Path) -> None:
    first = built.segments[0]
    table = read_rows(tmp_path / first.table.path)
    short = refused(with_table(built, tmp_path, table.slice(0, 10)), tmp_path)
    assert short == f"other.parquet: 10 rows, where the manifest says {first.rows}"
    assert refused(with_segment(built, rows=1), tmp_path) == f"base-00000.parquet: {first.rows} rows, where the manifest says 1"
    whole = with_segment(with_table(built, tmp_path, table.slice(0, 10)), rows=10)
    assert refused(whole, tmp_path) == f"base-00000.faiss: {first.rows} vectors, where the manifest says 10"


@pytest.mark.parametrize("column", ["key", "price"])
def test_a_table_without_one_of_its_columns_is_refused(column: str, built: IndexManifest, tmp_path: Path) -> None:
    table = read_rows(tmp_path / built.segments[0].table.path).drop_columns([column])
    assert f"it has no column '{column}'" in refused(with_table(built, tmp_path, table), tmp_path)


def test_tables_whose_columns_do_not_fit_together_are_refused(built: IndexManifest, tmp_path: Path) -> None:
    table = read_rows(tmp_path / built.segments[0].table.path)
    other = table.set_column(table.column_names.index("colour"), "colour", pa.array([3.5] * len(table)))
    assert "do not fit together" in refused(with_table(built, tmp_path, other), tmp_path)
    texts = table.set_column(table.column_names.index("key"), "key", pa.array(["one"] * len(table)))
    assert "its keys are string" in refused(with_table(built, tmp_path, texts), tmp_path)


def test_a_manifest_that_makes_no_sense_is_refused(built: IndexManifest, tmp_path: Path) -> None:
    stray = built.segments[0].model_copy(update={"shard": 5})
    more = built.model_copy(update={"segments": (*built.segments, stray)})
    assert "it is of shard 5, and the index has 2 shards" in refused(more, tmp_path)
    assert "shard 0 of 2 has no base segment" in refused(with_segment(built, index=None), tmp_path)
    for value in ("many", -1, float("nan")):
        odd = built.model_copy(update={"search": {"family": "flat", "nprobe": value}})
        assert f"the search parameter nprobe is {value!r}, where a number" in refused(odd, tmp_path)


def test_threads_search_at_once_and_agree(opened: tuple[Shop, Searcher]) -> None:
    _, searcher = opened
    xq = clustered(np.random.default_rng(2), 64, 32)
    allowed = np.random.default_rng(3).random(300) < 0.5
    alone = [searcher.search(q[None], 10, allowed).rows for q in xq]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda q: searcher.search(q[None], 10, allowed).rows, xq))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_a_search_leaves_the_thread_setting_as_it_was(opened: tuple[Shop, Searcher]) -> None:
    with omp_threads(2):
        opened[1].search(clustered(np.random.default_rng(2), 1, 32), 10)
        assert faiss.omp_get_max_threads() == 2


def test_the_callers_arrays_are_not_changed(opened: tuple[Shop, Searcher]) -> None:
    xq = clustered(np.random.default_rng(2), 3, 32)
    allowed = np.ones(300, bool)
    before = xq.copy()
    opened[1].search(xq, 10, allowed)
    assert (xq == before).all()
    assert allowed.all()


def test_merging_is_stable_for_equal_similarities() -> None:
    a = Neighbors(np.array([[0.9, 0.5]], np.float32), np.array([[4, 1]]))
    b = Neighbors(np.array([[0.9, 0.5, -np.inf]], np.float32), np.array([[2, 7, -1]]))
    for parts in ([a, b], [b, a]):
        assert merge(parts, 4).rows.tolist() == [[2, 4, 1, 7]]
    assert merge([a], 3).rows.tolist() == [[4, 1, -1]]


def test_an_index_stays_readable_after_its_opener_is_gone(tmp_path: Path) -> None:
    """FAISS's downcast gives a view that does not own its memory; segments must."""
    import gc

    shop = make_shop(tmp_path / "shop", n=200)
    searchers = [open_shop(shop, tmp_path / f"built{n}") for n in range(3)]
    gc.collect()
    xq = clustered(np.random.default_rng(1), 4, 32)
    assert all(s.engine.index.thisown for searcher in searchers for s in searcher.segments)
    np.testing.assert_array_equal(searchers[0].search(xq, 10).rows, searchers[2].search(xq, 10).rows)


@pytest.mark.parametrize("family", ["flat", "ivf_flat", "ivf_fs_sq8", "ivf_fs_fp16", "hnsw_sq8", "hnsw_fp16", "hnsw_bf16"])
def test_an_answer_does_not_depend_on_the_queries_beside_it(family: str, tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop", n=11_000, shards=2)
    searcher = open_shop(shop, tmp_path / "built", family, {"nprobe": 8, "k_factor": 2, "ef": 64})
    xq = clustered(np.random.default_rng(5), 8, 32)
    beside = searcher.search(xq, 100)
    for n, x in enumerate(xq):
        alone = searcher.search(x[None], 100)
        np.testing.assert_array_equal(beside.rows[n], alone.rows[0])
        np.testing.assert_array_equal(beside.similarity[n], alone.similarity[0])
