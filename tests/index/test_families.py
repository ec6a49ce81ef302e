"""Every family: built from the same template, searched through the Searcher, held to the same promises."""

from pathlib import Path

import numpy as np
import pytest

from serving.index.searcher import Searcher
from tasks.index.families import FAMILIES, code_count, fast_code_count, list_count
from tests.index.conftest import Built
from tests.index.shop import Shop, brute_force, build_all, clustered, manifest_of

APPROXIMATE = [n for n in FAMILIES if n != "flat"]
K = 10


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_finds_nearly_what_exact_search_finds(name: str, wide_shop: Shop, searchers: dict[str, Searcher]) -> None:
    xq = clustered(np.random.default_rng(3), 50, 32)
    searcher = searchers[name]
    truth = np.argsort(-(xq @ wide_shop.vectors.T), axis=1)[:, :K]
    found = searcher.features.key[searcher.search(xq, 100).rows]
    recall = np.mean([len(set(wide_shop.keys[t]) & set(f)) / K for t, f in zip(truth, found, strict=True)])
    assert recall >= (0.99 if FAMILIES[name].exact else 0.8)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01, 0.001])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_filter_never_leaks_and_never_comes_back_short(
    name: str, share: float, wide_shop: Shop, searchers: dict[str, Searcher]
) -> None:
    searcher = searchers[name]
    allowed = np.random.default_rng(5).random(searcher.rows) < share
    xq = clustered(np.random.default_rng(6), 8, 32)
    found = searcher.search(xq, 20, allowed, params=dict(FAMILIES[name].grid[0]))
    there = found.rows >= 0
    assert (there.sum(axis=1) == min(20, int(allowed.sum()))).all()
    assert allowed[found.rows[there]].all()
    assert all(len(set(r[r >= 0])) == (r >= 0).sum() for r in found.rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_vector_is_near_the_one_that_was_added(name: str, wide_shop: Shop, searchers: dict[str, Searcher]) -> None:
    searcher = searchers[name]
    place = {k: i for i, k in enumerate(wide_shop.keys)}
    for row in (0, 17, searcher.rows - 1):
        own = wide_shop.vectors[place[searcher.features.key[row]]]
        stored = searcher.vector(row)
        cosine = stored @ own / np.linalg.norm(stored)
        assert cosine >= (0.999 if FAMILIES[name].exact else 0.7)


@pytest.mark.parametrize("name", ["ivf_fs_sq8", "ivf_pq", "hnsw_sq8"])
def test_the_same_input_gives_the_same_bytes(name: str, wide_shop: Shop, built: dict[str, Built], tmp_path: Path) -> None:
    again = Built(tmp_path, *build_all(wide_shop, tmp_path, name))
    one, two = ((m.template.sha256, [(s.index.sha256, s.table.sha256) for s in m.shards]) for m in (built[name], again))
    assert one == two


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith("hnsw")])
def test_the_memory_formula_is_within_a_quarter_of_the_file(name: str, wide_shop: Shop, searchers: dict[str, Searcher]) -> None:
    searcher = searchers[name]
    whole = sum(s.index.bytes for s in searcher.manifest.segments if s.index is not None)
    template_share = 2 * 1024 * 4 * 32 + 200_000  # coarse centroids and code books, which 12,000 small vectors do not outweigh
    assert FAMILIES[name].bytes_per_vector(32) * searcher.rows == pytest.approx(whole, rel=0.25, abs=template_share)


def test_brute_force_agrees_with_flat(wide_shop: Shop, searchers: dict[str, Searcher]) -> None:
    xq = clustered(np.random.default_rng(9), 20, 32)
    np.testing.assert_allclose(searchers["flat"].search(xq, K).similarity, brute_force(wide_shop.vectors, xq, K), atol=1e-5)


def test_lists_and_codes_fit_the_data() -> None:
    assert [list_count(n) for n in (0, 100, 1_000_000, 10_000_000)] == [16, 16, 2048, 4096]
    assert [code_count(d, 8) for d in (512, 100, 7)] == [64, 10, 1]
    assert [fast_code_count(d) for d in (1024, 768, 512, 384, 128, 100, 16, 7)] == [128, 96, 64, 64, 64, 50, 8, 1]


def test_manifest_fits_the_shop(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("one")
    _, built = build_all(shop, folder)
    assert manifest_of(shop, built).counts.servable == len(shop.ids)
