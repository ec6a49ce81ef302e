"""Titles among pictures, against a brute-force oracle over products: photos never find them, words find both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serving.circuit_breaker import CircuitBreaker
from serving.contract.manifest import IndexManifest
from serving.index.engine import EngineUnavailable
from serving.index.merge import Neighbors, merge
from serving.index.recall import DEPTH
from serving.index.remote_engine import RemoteEngine
from serving.index.searcher import Searcher
from serving.index.segment_group import OpenSegment, SegmentGroup
from tasks.index.delta import add_delta, merge_deltas
from tasks.index.ground_truth import exact_truth
from tasks.index.picture_counts import live_pictures
from tasks.index.tune import stored_truth
from tasks.index.verify_version import check_index
from tasks.index.version_manifest import with_golden
from tests.index.pictured import Pictured, best_products, draw, join, make_pictured, shards_apart, write_pictures
from tests.index.shop import Shop, build_all, manifest_of
from tests.index.test_pictures import changes_of, queries

D, K = 32, 20
SHARES = (1.0, 0.3, 0.02)


def titled(pictures: Pictured, keys: np.ndarray) -> Pictured:
    """The products `keys` have a title in the place of their pictures."""
    own = pictures.of(keys)
    first = np.unique(own.product, return_index=True)[1]
    titles = Pictured(own.product[first], np.full(len(first), -1, np.int16), own.vectors[first])
    return join([pictures.without(keys), titles])


def of_photos(pictures: Pictured) -> Pictured:
    """What a photo may find."""
    shown = pictures.position >= 0
    return Pictured(*(values[shown] for values in vars(pictures).values()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Pictured]:
    """300 products with up to eight pictures, a quarter of them with a title alone."""
    folder = tmp_path_factory.mktemp("titled")
    shop, pictures = make_pictured(folder)
    live = titled(pictures, shop.keys[::4])
    write_pictures(folder / "titles", live, 2)
    return replace(shop, vectors_uri=str(folder / "titles")), live


@pytest.fixture(scope="module")
def flat(shop: tuple[Shop, Pictured], tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexManifest, Path]:
    folder = tmp_path_factory.mktemp("flat")
    return manifest_of(shop[0], build_all(shop[0], folder)[1]), folder


def assert_like_oracle(searcher: Searcher, live: Pictured, rng: np.random.Generator, share: float, k: int = K) -> None:
    """Both searches answer photos and words as the oracle does, filtered too, each product once."""
    xq = queries(rng, live)
    keys = np.unique(live.product)
    allowed = keys[(keys * 2654435761 >> 7) % 1000 < 1000 * share]
    mask = np.isin(searcher.features.key, allowed) if share < 1 else None
    assert searcher.live_titles == int((live.position < 0).sum())
    assert searcher.live_vectors == len(live.product)
    shown = searcher.live() & np.isin(searcher.features.key, of_photos(live).product)
    assert searcher.depicted().tolist() == shown.tolist()
    for words, seen in ((False, of_photos(live)), (True, live)):
        truth, matched = best_products(seen, xq, k, allowed)
        for found in (searcher.search(xq, k, mask, words=words), searcher.exact(xq, k, mask, words=words)):
            np.testing.assert_allclose(found.similarity, truth, atol=1e-4)
            for query in range(len(xq)):
                rows = found.rows[query][found.rows[query] >= 0]
                places = np.zeros(len(rows)) if found.pictures is None else found.pictures[query][: len(rows)]
                chosen = searcher.features.key[rows].tolist()
                assert len(set(chosen)) == len(chosen)
                assert all(int(p) in matched[query][key] for key, p in zip(chosen, places, strict=True))


@pytest.mark.parametrize("share", SHARES)
def test_photos_find_pictures_and_words_find_titles_too(
    share: float, shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]
) -> None:
    manifest, folder = flat
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    assert_like_oracle(searcher, shop[1], np.random.default_rng(1), share)
    assert_like_oracle(searcher, shop[1], np.random.default_rng(2), share, k=310)


def test_a_version_of_titles_alone_answers_words_and_no_photo(tmp_path: Path) -> None:
    shop, pictures = make_pictured(tmp_path / "shop", n=20, most=1)
    live = titled(pictures, shop.keys)
    write_pictures(tmp_path / "titles", live, 2)
    shop = replace(shop, vectors_uri=str(tmp_path / "titles"))
    manifest = manifest_of(shop, build_all(shop, tmp_path / "built")[1])
    searcher = Searcher.open(manifest, lambda ref: tmp_path / "built" / ref.path)
    xq = queries(np.random.default_rng(1), live)
    assert (searcher.search(xq, 5).rows == -1).all()
    assert (searcher.exact(xq, 5).rows == -1).all()
    assert_like_oracle(searcher, live, np.random.default_rng(2), 1.0)


def test_versions_without_titles_are_searched_as_ever(tmp_path: Path) -> None:
    shop, _ = make_pictured(tmp_path / "shop", n=40)
    manifest = manifest_of(shop, build_all(shop, tmp_path / "built")[1])
    searcher = Searcher.open(manifest, lambda ref: tmp_path / "built" / ref.path)
    assert searcher.live_titles == 0
    assert all(group.select(None) is group.select(None, words=True) is group.all for group in searcher.groups)


def test_shards_apart_find_what_the_whole_finds(shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]) -> None:
    manifest, folder = flat
    whole, apart = Searcher.open(manifest, lambda ref: folder / ref.path), shards_apart(manifest, folder)
    xq = queries(np.random.default_rng(4), shop[1])
    for words in (False, True):
        expected = whole.exact(xq, K, words=words)
        for found in ([s.search(xq, K, None, words) for s in apart], [s.measure(xq, K, True, words) for s in apart]):
            np.testing.assert_array_equal(merge(found, K).rows, expected.rows)


hour = st.fixed_dictionaries(
    {
        "upserts": st.sets(st.integers(0, 319), max_size=12), "deletes": st.sets(st.integers(0, 319), max_size=8),
        "kind": st.sampled_from(["title", "other title", "pictures", "one picture"]), "merge": st.booleans(),
    }
)  # fmt: skip


@given(hours=st.lists(hour, min_size=1, max_size=4), seed=st.integers(0, 1000), share=st.sampled_from(SHARES))
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True)
def test_any_history_of_titles_and_pictures_answers_like_the_oracle(
    shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path], hours: list[dict], seed: int, share: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Products get a title, another one, pictures, lose them, and go."""
    (made, live), (manifest, home) = shop, flat
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("hours")
    pool = np.concatenate([made.keys, np.arange(20, dtype=np.int64) * 7 + 10**12])

    def locate(ref):  # type: ignore[no-untyped-def]
        return (folder if ref.path.startswith("h") else home) / ref.path

    for number, one in enumerate(hours):
        upserts, deletes = pool[sorted(one["upserts"])], pool[sorted(one["deletes"] - one["upserts"])]
        now = draw_now(rng, one["kind"], upserts)
        keys = np.concatenate([upserts, deletes])
        gone = live.of(keys)
        assert live_pictures(manifest, keys, locate) == (len(gone.product), int((gone.position < 0).sum()))
        path = f"h{number}"
        segments = add_delta(manifest, changes_of(made, now, deletes, np.unique(live.product)), folder / path, prefix=path)
        manifest = manifest.model_copy(update={"segments": segments})
        live = join([live.without(keys), now])
        if one["merge"]:
            merged = merge_deltas(manifest, locate, folder / f"{path}x", prefix=f"{path}x")
            manifest = manifest.model_copy(update={"segments": merged})
    assert_like_oracle(Searcher.open(manifest, locate), live, rng, share)


def draw_now(rng: np.random.Generator, kind: str, keys: np.ndarray) -> Pictured:
    drawn = draw(rng, keys, D, most=1 if kind == "one picture" else 8)
    return titled(drawn, keys) if "title" in kind else drawn


def test_the_truth_that_photos_are_measured_by_has_no_titles(
    shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path], tmp_path: Path
) -> None:
    (made, live), (manifest, folder) = shop, flat
    xq = queries(np.random.default_rng(5), live)
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    expected, _ = best_products(of_photos(live), xq, DEPTH)
    for truth in (exact_truth(made.vectors_uri, 2, xq, tmp_path), stored_truth(searcher, xq)):
        np.testing.assert_allclose(truth.similarity, expected, atol=1e-4)


class Collection:
    """A collection of another engine that compares all rows and takes no masks, as pgvector's indexes."""

    takes_masks, most = False, 10_000

    def __init__(self, vectors: np.ndarray) -> None:
        self.x, self.rows = vectors, len(vectors)

    def search(self, xq: np.ndarray, k: int, mask: object, params: dict, effort: int) -> Neighbors:
        return self.nearest(xq, np.arange(self.rows), k)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        similarity = xq @ self.x[positions].T
        order = np.argsort(-similarity, axis=1)[:, :k]
        return Neighbors(np.take_along_axis(similarity, order, axis=1), positions[order])

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return self.x[positions]


def test_an_engine_that_takes_no_masks_gives_no_titles_to_photos(
    shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]
) -> None:
    manifest, folder = flat
    opened, live = Searcher.open(manifest, lambda ref: folder / ref.path), shop[1]
    stored = np.concatenate([s.engine.vectors(np.arange(s.vectors)) for s in opened.segments if s.engine is not None])
    engine = RemoteEngine(Collection(stored), CircuitBreaker("made up", EngineUnavailable, ()))
    group = SegmentGroup(engine, [OpenSegment(None, s.start, s.rows, None, True, s.pictures) for s in opened.segments])
    xq = queries(np.random.default_rng(6), live)
    for words, seen in ((False, of_photos(live)), (True, live)):
        truth, _ = best_products(seen, xq, K)
        np.testing.assert_allclose(group.search(group.select(None, words), xq, K, {}).similarity, truth, atol=1e-4)


def test_a_count_of_titles_that_is_not_the_indexs_is_found_by_the_verifier(
    shop: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]
) -> None:
    manifest, folder = flat
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    (folder / "golden").mkdir()
    manifest = with_golden(manifest, searcher, queries(np.random.default_rng(7), shop[1]), folder / "golden", "", "golden")
    found = {c.name: c for c in check_index(manifest, lambda ref: folder / ref.path)}
    assert [name for name, check in found.items() if check.passed is False] == ["counts"]
    assert found["counts"].detail == "the manifest counts 0 products without a picture and there are 75"
    counts = manifest.counts.model_copy(update={"titles": 75})
    found = {c.name: c for c in check_index(manifest.model_copy(update={"counts": counts}), lambda ref: folder / ref.path)}
    assert all(check.passed for check in found.values())
    assert "75 have no picture and are found by words alone" in counts.of_pictures
