"""Deltas, tombstones and merging against a brute-force oracle over the live rows."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serving.contract.keys import product_keys
from serving.contract.manifest import IndexManifest
from serving.contract.segments import ROW_COLUMNS
from serving.index.searcher import Searcher
from tasks.catalog.snapshot import product_table
from tasks.errors import VitrineError
from tasks.index.delta import Changes, DeltaLimits, add_delta, code_deltas, compaction_due, flat_rows, merge_deltas
from tasks.index.template import Template
from tests.index.shop import Shop, brute_force, build_all, clustered, manifest_of

Bases = dict[str, tuple[Shop, IndexManifest, Path]]
D = 32
POOL = 630
"""Product numbers that changes draw from: 600 are in the base, 30 are new."""


def changes_of(shop: Shop, upserts: dict[int, np.ndarray], deletes: set[int]) -> Changes:
    """Upserts by product number with their new vectors; the other columns come from a product of the snapshot."""
    numbers = sorted(upserts)
    rows = product_table(shop.snapshot.uri, [*ROW_COLUMNS, "colour"]).take(pa.array([n % 600 for n in numbers], pa.int64()))
    ids = [f"P{n:05d}" for n in numbers]
    rows = rows.set_column(rows.column_names.index("product_id"), "product_id", pa.array(ids, pa.string()))
    rows = rows.set_column(rows.column_names.index("key"), "key", pa.array(product_keys(ids), pa.int64()))
    vectors = np.stack([upserts[n] for n in numbers]) if numbers else np.zeros((0, D), np.float32)
    return Changes(rows, vectors, product_keys(f"P{n:05d}" for n in sorted(deletes)))


def opened(manifest: IndexManifest, folder: Path) -> Searcher:
    return Searcher.open(manifest, lambda ref: folder / ref.path)


def with_segments(manifest: IndexManifest, segments: tuple) -> IndexManifest:
    return manifest.model_copy(update={"segments": segments})


hour = st.fixed_dictionaries(
    {
        "upserts": st.sets(st.integers(0, POOL - 1), max_size=25),
        "deletes": st.sets(st.integers(0, POOL - 1), max_size=25),
        "after": st.sampled_from(["", "merge", "code"]),
    }
)


@pytest.mark.parametrize("family", ["flat", "ivf_fs_sq8", "hnsw_sq8"])
@given(hours=st.lists(hour, min_size=1, max_size=4), seed=st.integers(0, 1000), share=st.sampled_from([1.0, 0.3, 0.02]))
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True)
def test_any_history_answers_like_brute_force_over_what_is_live(
    family: str, bases: Bases, templates: dict[str, Template], hours: list[dict], seed: int, share: float
) -> None:
    shop, manifest, home = bases[family]
    rng = np.random.default_rng(seed)
    live = dict(zip(shop.keys.tolist(), shop.vectors, strict=True))
    with TemporaryDirectory() as name:
        folder = Path(name)

        def locate(ref):  # type: ignore[no-untyped-def]
            return (folder if ref.path.startswith("h") else home) / ref.path

        for number, one in enumerate(hours):
            deletes = one["deletes"] - one["upserts"]
            vectors = dict(zip(sorted(one["upserts"]), clustered(rng, len(one["upserts"]), D), strict=True))
            changes = changes_of(shop, vectors, deletes)
            keys = changes.rows["key"].to_numpy()
            changes = replace(changes, new=keys[~np.isin(keys, list(live))])
            path = f"h{number}"
            manifest = with_segments(manifest, add_delta(manifest, changes, folder / path, prefix=path))
            live |= dict(zip(changes.rows["key"].to_pylist(), changes.vectors, strict=True))
            for key in changes.deletes.tolist():
                live.pop(key, None)
            if one["after"] == "merge":
                manifest = with_segments(manifest, merge_deltas(manifest, locate, folder / f"{path}m", prefix=f"{path}m"))
            elif one["after"] == "code":
                coded = code_deltas(manifest, locate, templates[family], folder / f"{path}c", prefix=f"{path}c")
                manifest = with_segments(manifest, coded)
        searcher = Searcher.open(manifest, locate)
        assert searcher.live_rows == len(live)
        keys, matrix = np.array(list(live)), np.stack(list(live.values()))
        wanted = {k for k in keys.tolist() if (k * 2654435761 >> 7) % 1000 < 1000 * share}
        allowed = np.isin(searcher.features.key, np.array(sorted(wanted), np.int64))
        near = matrix[rng.integers(0, len(matrix), 6)] + 0.05 * rng.standard_normal((6, D))
        xq = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
        found = searcher.search(xq, 20, allowed)
        truth = brute_force(matrix, xq, 20, np.isin(keys, np.array(sorted(wanted), np.int64)))
        assert ((found.rows >= 0) == np.isfinite(truth)).all(), "never fewer than there are"
        names = searcher.features.key[found.rows]
        assert all(n in wanted for n in names[found.rows >= 0].tolist()), "nothing deleted or filtered out"
        assert all(len(set(n[r >= 0])) == (r >= 0).sum() for n, r in zip(names, found.rows, strict=True)), "nothing twice"
        exact = searcher.exact(xq, 20, allowed).similarity
        tolerance = 1e-4 if family == "flat" else 2e-2
        np.testing.assert_allclose(exact, truth, atol=tolerance)
        if family == "flat":
            np.testing.assert_allclose(found.similarity, truth, atol=1e-4)
        else:
            there = np.isfinite(truth)
            assert (found.similarity[there] >= truth[there] - tolerance).mean() >= 0.9


@pytest.fixture(scope="module")
def templates() -> dict[str, Template]:
    """Of each family's base, once it is built."""
    return {}


@pytest.fixture(scope="module")
def bases(shop: Shop, wide_shop: Shop, templates: dict[str, Template], tmp_path_factory: pytest.TempPathFactory) -> Bases:
    made = {}
    for family, search in {"flat": {}, "ivf_fs_sq8": {"nprobe": 128, "k_factor": 16}, "hnsw_sq8": {"ef": 128}}.items():
        chosen = shop if family != "ivf_fs_sq8" else wide_shop
        folder = tmp_path_factory.mktemp(family)
        templates[family], built = build_all(chosen, folder, family)
        made[family] = (chosen, manifest_of(chosen, built, {"family": family, **search}), folder)
    return made


def test_a_delta_costs_what_changed(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, _ = bases["flat"]
    sizes = []
    for n in (10, 40):
        folder = tmp_path / str(n)
        vectors = clustered(np.random.default_rng(n), n, D)
        segments = add_delta(manifest, changes_of(shop, dict(enumerate(vectors)), set()), folder)
        assert segments[: len(manifest.segments)] == manifest.segments, "everything else is referenced as it is"
        sizes.append(sum(f.stat().st_size for f in folder.glob("*.faiss")))
    assert 3 <= sizes[1] / sizes[0] <= 4.5


def test_the_same_changes_give_the_same_bytes(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, _ = bases["flat"]
    changes = changes_of(shop, dict(enumerate(clustered(np.random.default_rng(1), 9, D))), {70, 71})
    assert add_delta(manifest, changes, tmp_path / "a") == add_delta(manifest, changes, tmp_path / "b")


def test_a_deleted_product_comes_back_with_a_later_upsert(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, home = bases["flat"]
    vector = clustered(np.random.default_rng(1), 1, D)
    for number, changes in enumerate((changes_of(shop, {}, {5}), changes_of(shop, {5: vector[0]}, set()))):
        manifest = with_segments(manifest, add_delta(manifest, changes, home / f"again{number}", prefix=f"again{number}"))
        searcher = opened(manifest, home)
        assert searcher.live_rows == 599 + number
    (row,) = searcher.search(vector, 1).rows[0]
    assert searcher.features.key[row] == shop.keys[5]


def test_changes_that_contradict_themselves_are_refused(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, _ = bases["flat"]
    both = changes_of(shop, {3: clustered(np.random.default_rng(1), 1, D)[0]}, {3})
    with pytest.raises(VitrineError, match=f"key {shop.keys[3]} is changed twice"):
        add_delta(manifest, both, tmp_path)
    none = Changes(both.rows, np.zeros((0, D), np.float32), np.zeros(0, np.int64))
    with pytest.raises(VitrineError, match="1 changed rows with 0 vectors"):
        add_delta(manifest, none, tmp_path)
    nan = Changes(both.rows, np.full((1, D), np.nan, np.float32), np.zeros(0, np.int64))
    with pytest.raises(VitrineError, match="NaN or not of unit length"):
        add_delta(manifest, nan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rebuild_is_asked_for_past_the_limits(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, _ = bases["flat"]
    assert compaction_due(manifest.segments) == ""
    many = dict(enumerate(clustered(np.random.default_rng(1), 100, D)))
    grown = add_delta(manifest, changes_of(shop, many, set()), tmp_path / "a")
    assert "100 rows in delta segments are 16.7% of the base (limit 10%)" in compaction_due(grown)
    assert "segments (limit 1)" in compaction_due(grown, DeltaLimits(0.5, 1000, 0.5, 1))
    assert "compared with 100 rows of flat deltas (limit 99)" in compaction_due(grown, DeltaLimits(0.5, 99))
    assert "tombstones" in compaction_due(add_delta(manifest, changes_of(shop, {}, set(range(200))), tmp_path / "b"))


def test_flat_deltas_are_searched_together(bases: Bases, tmp_path: Path) -> None:
    shop, manifest, home = bases["ivf_fs_sq8"]
    vectors = clustered(np.random.default_rng(2), 30, D)
    for hour in range(3):
        mine = {600 + hour * 10 + n: vectors[hour * 10 + n] for n in range(10)}
        changes = changes_of(shop, mine, {hour})
        manifest = with_segments(manifest, add_delta(manifest, changes, tmp_path / f"h{hour}", prefix=f"h{hour}"))
    searcher = Searcher.open(manifest, lambda ref: (tmp_path if ref.path.startswith("h") else home) / ref.path)
    assert [len(p.segments) for p in searcher.groups] == [2, sum(s.kind == "delta" for s in manifest.segments)]
    found = searcher.search(vectors, 1)
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-3)
    assert searcher.features.key[found.rows[:, 0]].tolist() == product_keys(f"P{600 + n:05d}" for n in range(30)).tolist()
    for query, row in enumerate(found.rows[:, 0].tolist()):
        np.testing.assert_allclose(searcher.vector(row), vectors[query], atol=1e-3)


def test_coded_deltas_are_searched_with_the_bases_and_read_no_others_again(
    bases: Bases, templates: dict[str, Template], tmp_path: Path
) -> None:
    shop, manifest, home = bases["ivf_fs_sq8"]
    vectors = clustered(np.random.default_rng(2), 30, D)

    def locate(ref):  # type: ignore[no-untyped-def]
        return (tmp_path if ref.path[0] in "hc" else home) / ref.path

    for hour in range(3):
        mine = {600 + hour * 10 + n: vectors[hour * 10 + n] for n in range(10)}
        # What an earlier hour brought and an earlier code_deltas has coded goes away again in the last.
        changes = changes_of(shop, mine, {600} if hour == 2 else set())
        manifest = with_segments(manifest, add_delta(manifest, changes, tmp_path / f"h{hour}", prefix=f"h{hour}"))
        before = {s for s in manifest.segments if s.family != "flat"}
        template = templates["ivf_fs_sq8"]
        manifest = with_segments(manifest, code_deltas(manifest, locate, template, tmp_path / f"c{hour}", prefix=f"c{hour}"))
        assert before <= set(manifest.segments), "only flat deltas are made anew"
        assert flat_rows(manifest.segments) == 0
    searcher = Searcher.open(manifest, locate)
    assert len(searcher.groups) == 1, "coded deltas are shards of the base's template"
    found = searcher.search(vectors, 20)
    assert searcher.features.key[found.rows[1:, 0]].tolist() == product_keys(f"P{600 + n:05d}" for n in range(1, 30)).tolist()
    assert searcher.features.key[found.rows[0, 0]] != product_keys(["P00600"])[0]
    np.testing.assert_allclose(found.similarity[1:, 0], 1, atol=5e-2)


def test_coding_gives_the_same_bytes_and_a_delta_without_lists_stays_flat(
    bases: Bases, templates: dict[str, Template], tmp_path: Path
) -> None:
    shop, manifest, _ = bases["ivf_fs_sq8"]
    changes = changes_of(shop, dict(enumerate(clustered(np.random.default_rng(1), 40, D))), set())
    grown = with_segments(manifest, add_delta(manifest, changes, tmp_path / "h", prefix="h"))
    first, second = (
        code_deltas(grown, lambda ref: tmp_path / ref.path, templates["ivf_fs_sq8"], tmp_path / name, prefix="c")
        for name in ("one", "two")
    )
    assert first == second
    shop, manifest, _ = bases["hnsw_sq8"]
    grown = with_segments(manifest, add_delta(manifest, changes, tmp_path / "g", prefix="g"))
    kept = code_deltas(grown, lambda ref: tmp_path / ref.path, templates["hnsw_sq8"], tmp_path / "three", prefix="c")
    assert {s.family for s in kept if s.kind == "delta"} == {"flat"}
