"""Several pictures a product, against a brute-force oracle over products: builds, deltas, tombstones, filters, every family."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serving.contract.files import ContractError, describe
from serving.contract.manifest import IndexManifest, SegmentPictures
from serving.contract.provenance import EmbeddingCommit
from serving.contract.segments import PICTURES, ROW_COLUMNS, read_pictures, write_rows
from serving.index.merge import merge
from serving.index.recall import DEPTH
from serving.index.searcher import Searcher
from tasks.catalog.snapshot import product_table
from tasks.errors import VitrineError
from tasks.index.build import BUILT, build_shard
from tasks.index.delta import Changes, add_delta, code_deltas, compaction_due, flat_rows, merge_deltas
from tasks.index.ground_truth import exact_truth
from tasks.index.picture_counts import live_pictures, quarantined_pictures
from tasks.index.shard_store import locate_shards, store_shard, stored_shard
from tasks.index.template import Template
from tasks.index.tune import stored_truth
from tasks.index.vectors import shard_pictures
from tasks.index.verify_version import check_index
from tests.index.pictured import Pictured, best_products, draw, join, make_pictured, shards_apart, write_pictures
from tests.index.shop import Shop, build_all, manifest_of

D = 32
SHARES = (1.0, 0.3, 0.02)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Pictured]:
    return make_pictured(tmp_path_factory.mktemp("pictured"))


@pytest.fixture(scope="module")
def flat(pictured: tuple[Shop, Pictured], tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexManifest, Path]:
    folder = tmp_path_factory.mktemp("flat")
    return manifest_of(pictured[0], build_all(pictured[0], folder)[1]), folder


def queries(rng: np.random.Generator, pictures: Pictured, n: int = 6) -> np.ndarray:
    near = pictures.vectors[rng.integers(0, len(pictures.vectors), n)] + 0.1 * rng.standard_normal((n, pictures.vectors.shape[1]))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


def allowed_keys(pictures: Pictured, share: float) -> np.ndarray:
    keys = np.unique(pictures.product)
    return keys[(keys * 2654435761 >> 7) % 1000 < 1000 * share]


def assert_like_oracle(
    searcher: Searcher, pictures: Pictured, rng: np.random.Generator, share: float = 1.0, k: int = 20, tolerance: float = 1e-4,
    least: float = 1.0,
) -> None:  # fmt: skip
    """Both searches give the products of the oracle, each once and with its best picture; `least` of those of an approximate search."""
    wanted, xq = allowed_keys(pictures, share), queries(rng, pictures)
    mask = np.isin(searcher.features.key, wanted)
    truth, matched = best_products(pictures, xq, k, wanted)
    assert searcher.live_rows == len(np.unique(pictures.product))
    assert searcher.live_vectors == len(pictures.product)
    for found, enough in ((searcher.search(xq, k, mask), least), (searcher.exact(xq, k, mask), 1.0)):
        there = np.isfinite(truth)
        assert ((found.rows >= 0) == there).all(), "never fewer products than there are"
        assert (found.similarity[there] >= truth[there] - tolerance).mean() >= enough
        assert (found.similarity[there] <= truth[there] + tolerance).all()
        for query in range(len(xq)):
            rows = found.rows[query][found.rows[query] >= 0]
            keys = searcher.features.key[rows]
            assert len(set(keys.tolist())) == len(keys), "no product twice"
            assert np.isin(keys, wanted).all(), "nothing deleted or filtered out"
            places = found.pictures_of(rows) if query == 0 else found.pictures[query][: len(rows)]
            if tolerance < 1e-3:
                assert all(int(p) in matched[query][int(key)] for key, p in zip(keys, places, strict=True)), "its best picture"


@pytest.mark.parametrize("share", SHARES)
def test_a_base_answers_with_products(share: float, pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]) -> None:
    manifest, folder = flat
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    assert_like_oracle(searcher, pictured[1], np.random.default_rng(1), share)
    assert_like_oracle(searcher, pictured[1], np.random.default_rng(2), share, k=310)


def test_the_same_picture_twice_is_the_first_of_them(pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]) -> None:
    manifest, folder = flat
    searcher, pictures = Searcher.open(manifest, lambda ref: folder / ref.path), pictured[1]
    for key in np.unique(pictures.product):
        own = pictures.of(np.array([key]))
        if len(own.position) > 2 and np.array_equal(own.vectors[0], own.vectors[2]):
            found = searcher.search(own.vectors[2:3], 1)
            assert searcher.features.key[found.rows[0, 0]] == key
            assert found.pictures is not None
            assert found.pictures[0, 0] == own.position[0]
            return
    raise AssertionError("the shop has such a product")


def test_rows_are_products_and_files_are_built_to_the_byte(pictured: tuple[Shop, Pictured], tmp_path: Path) -> None:
    shop, pictures = pictured
    template, built = build_all(shop, tmp_path / "one")
    again = build_shard(shop.vectors_uri, shop.snapshot.uri, template, 0, tmp_path / "two")
    assert again.pictures == built[0].pictures is not None
    assert sum(b.rows for b in built) == 300
    assert sum(b.pictures.rows for b in built if b.pictures) == len(pictures.product)
    table = pq.read_table(tmp_path / "one/shard-0" / built[0].table.path)
    first = {int(k): int(pictures.of(np.array([k])).position[0]) for k in table["key"].to_pylist()}
    for row in table.select(["key", "image_uri", "images"]).to_pylist():
        place = first[row["key"]]
        assert place == 0 or row["image_uri"] == row["images"][place - 1], "the first usable picture is shown"
    stored = store_shard(built[0], str(tmp_path / "store"))
    assert stored_shard(str(tmp_path / "store"), shop.vectors_uri, shop.snapshot.uri, template) == stored
    assert stored.pictures is not None
    assert locate_shards([stored], tmp_path)(stored.pictures.table).is_file()
    (tmp_path / "store" / stored.pictures.table.path).unlink()
    assert stored_shard(str(tmp_path / "store"), shop.vectors_uri, shop.snapshot.uri, template) is None


def test_vectors_of_main_pictures_alone_build_the_files_of_before(tmp_path: Path) -> None:
    """With and without a position column of zeros, and with further pictures that cannot be used, the segments are the same bytes."""
    shop, pictures = make_pictured(tmp_path / "shop", n=60)
    mains = Pictured(*(a[np.unique(pictures.product, return_index=True)[1]] for a in vars(pictures).values()))
    mains = Pictured(mains.product, np.zeros_like(mains.position), mains.vectors)
    write_pictures(tmp_path / "plain", mains, 2)
    _, plain = build_all(replace(shop, vectors_uri=str(tmp_path / "plain")), tmp_path / "a")
    for part in (tmp_path / "plain").glob("*/*.parquet"):
        table = pq.read_table(part)
        pq.write_table(table.append_column("position", pa.array(np.zeros(len(table), np.int16))), part)
    _, zeros = build_all(replace(shop, vectors_uri=str(tmp_path / "plain")), tmp_path / "b")
    assert [b.files for b in plain] == [b.files for b in zeros]
    assert all(b.pictures is None for b in plain)
    assert "pictures" not in manifest_of(shop, plain).segments[0].model_dump()
    assert not (tmp_path / "a/shard-0/base-00000.pictures.parquet").exists()
    assert BUILT


def test_vectors_that_another_snapshot_was_embedded_for_are_refused(pictured: tuple[Shop, Pictured], tmp_path: Path) -> None:
    shop, pictures = pictured
    other = Pictured(pictures.product, pictures.position + np.int16(20), pictures.vectors)
    write_pictures(tmp_path / "other", other, 2)
    with pytest.raises(VitrineError, match="has a vector of its picture 20, which the snapshot"):
        build_all(replace(shop, vectors_uri=str(tmp_path / "other")), tmp_path / "built")
    twice = Pictured(pictures.product, np.ones_like(pictures.position), pictures.vectors)
    write_pictures(tmp_path / "twice", twice, 2)
    with pytest.raises(VitrineError, match="occurs twice or out of order"):
        build_all(replace(shop, vectors_uri=str(tmp_path / "twice")), tmp_path / "built")


APPROXIMATE = {"ivf_flat": {"nprobe": 96}, "hnsw_sq8": {"ef": 512}}


def test_shards_apart_find_what_the_whole_finds(pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]) -> None:
    """Over the wire too: rows are the whole version's, and the matched pictures travel along."""
    manifest, folder = flat
    whole, apart = Searcher.open(manifest, lambda ref: folder / ref.path), shards_apart(manifest, folder)
    xq = queries(np.random.default_rng(4), pictured[1])
    for exact in (False, True):
        found = merge([s.measure(xq, 20, exact) for s in apart], 20)
        expected = whole.exact(xq, 20)
        np.testing.assert_array_equal(found.rows, expected.rows)
        assert found.pictures is not None
        np.testing.assert_array_equal(found.pictures, expected.pictures)
    row = int(expected.rows[0, 0])
    shard = max(s for s in range(2) if apart[s].start <= row)
    np.testing.assert_array_equal(apart[shard].vectors(np.array([row]))[0], whole.vector(row))


def changes_of(shop: Shop, pictures: Pictured, deletes: np.ndarray, known: np.ndarray) -> Changes:
    """The changes that leave products with exactly these pictures; the other columns come from products of the snapshot."""
    keys, count = np.unique(pictures.product), len(shop.keys)
    table = product_table(shop.snapshot.uri, [*ROW_COLUMNS, "images", "colour"])
    rows = table.take(pa.array(np.arange(len(keys)) % count))
    rows = rows.set_column(rows.column_names.index("key"), "key", pa.array(keys))
    several = bool(pictures.position.any())
    return Changes(rows, pictures.vectors, deletes, keys[~np.isin(keys, known)], pictures.table() if several else None)


hour = st.fixed_dictionaries(
    {
        "upserts": st.sets(st.integers(0, 329), max_size=12), "deletes": st.sets(st.integers(0, 329), max_size=8),
        "kind": st.sampled_from(["new", "one replaced", "one added", "one removed", "reordered", "main ones alone"]),
        "after": st.sampled_from(["", "merge", "code"]),
    }
)  # fmt: skip


def changed(kind: str, rng: np.random.Generator, live: Pictured, keys: np.ndarray) -> Pictured:
    """All pictures of the changed products after a change of this kind to each; of new products, drawn ones."""
    fresh = draw(rng, keys, D, most=1 if kind == "main ones alone" else 8)
    if kind in ("new", "main ones alone"):
        return fresh
    parts = [fresh.without(np.unique(live.product))]
    for key in np.intersect1d(keys, live.product):
        own, other = live.of(np.array([key])), draw(rng, np.array([key]), D, most=1)
        place = int(rng.integers(0, len(own.position)))
        if kind == "one replaced":
            vectors = own.vectors.copy()
            vectors[place] = other.vectors[0]
            own = replace(own, vectors=vectors)
        elif kind == "one added":
            own = join([own, replace(other, position=own.position[-1:] + np.int16(1))])
        elif kind == "one removed" and len(own.position) > 1:
            own = Pictured(*(np.delete(a, place, axis=0) for a in vars(own).values()))
        elif kind == "reordered":
            own = replace(own, vectors=own.vectors[rng.permutation(len(own.vectors))])
        parts.append(own)
    return join(parts)


@pytest.mark.parametrize("family", ["flat", *APPROXIMATE])
@given(hours=st.lists(hour, min_size=1, max_size=4), seed=st.integers(0, 1000), share=st.sampled_from(SHARES))
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True)
def test_any_history_of_pictures_answers_like_the_oracle(
    family: str, bases: dict[str, tuple[Shop, Pictured, IndexManifest, Path, Template]], hours: list[dict], seed: int, share: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    shop, live, manifest, home, template = bases[family]
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("hours")
    pool = np.concatenate([shop.keys[:300], np.arange(30, dtype=np.int64) * 7 + 10**12])

    def locate(ref):  # type: ignore[no-untyped-def]
        return (folder if ref.path.startswith("h") else home) / ref.path

    for number, one in enumerate(hours):
        upserts, deletes = pool[sorted(one["upserts"])], pool[sorted(one["deletes"] - one["upserts"])]
        now = changed(one["kind"], rng, live, upserts)
        changes = changes_of(shop, now, deletes, np.unique(live.product))
        path = f"h{number}"
        segments = add_delta(manifest, changes, folder / path, prefix=path)
        live = join([live.without(np.concatenate([upserts, deletes])), now])
        manifest = manifest.model_copy(update={"segments": segments})
        if one["after"]:
            run = {"merge": merge_deltas, "code": lambda *a, **n: code_deltas(*a[:2], template, *a[2:], **n)}[one["after"]]
            after = run(manifest, locate, folder / f"{path}x", prefix=f"{path}x")
            manifest = manifest.model_copy(update={"segments": after})
    searcher = Searcher.open(manifest, locate)
    if family == "flat":
        assert_like_oracle(searcher, live, rng, share)
    else:
        assert_like_oracle(searcher, live, rng, share, tolerance=2e-2, least=0.85)


@pytest.fixture(scope="module")
def bases(
    pictured: tuple[Shop, Pictured], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Shop, Pictured, IndexManifest, Path, Template]]:
    made = {}
    for family, search in {"flat": {}, **APPROXIMATE}.items():
        # Lists need many vectors to be trained on.
        shop, pictures = make_pictured(tmp_path_factory.mktemp("many"), n=2700) if family == "ivf_flat" else pictured
        folder = tmp_path_factory.mktemp(family)
        template, built = build_all(shop, folder, family)
        made[family] = (shop, pictures, manifest_of(shop, built, {"family": family, **search}), folder, template)
    return made


def test_a_change_of_one_picture_writes_that_products_pictures_alone(
    pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path], tmp_path: Path
) -> None:
    (shop, live), (manifest, _) = pictured, flat
    key = np.unique(live.product)[3:4]
    now = changed("one replaced", np.random.default_rng(1), live, key)
    segments = add_delta(manifest, changes_of(shop, now, np.zeros(0, np.int64), shop.keys), tmp_path)
    delta, stones = segments[-2:]
    assert (delta.rows, delta.vectors, stones.rows) == (1, len(now.product), 1)
    assert flat_rows(segments) == len(now.product)
    assert not compaction_due(segments)
    if delta.pictures is not None:
        table = read_pictures(tmp_path / delta.pictures.table.path, delta.vectors, PICTURES.names)
        assert table.equals(now.table())


def test_pictures_that_do_not_fit_their_segment_are_refused(flat: tuple[IndexManifest, Path], tmp_path: Path) -> None:
    manifest, home = flat
    first = manifest.segments[0]
    assert first.pictures is not None
    table = read_pictures(home / first.pictures.table.path, first.pictures.rows, PICTURES.names)

    def refused(table: pa.Table, rows: int | None = None) -> str:
        write_rows(tmp_path / "other.parquet", table)
        pictures = SegmentPictures(rows=rows or len(table), table=describe(tmp_path / "other.parquet", "other.parquet"))
        other = manifest.model_copy(
            update={"segments": (first.model_copy(update={"pictures": pictures}), *manifest.segments[1:])}
        )
        with pytest.raises(ContractError) as caught:
            Searcher.open(other, lambda ref: (tmp_path if ref.path == "other.parquet" else home) / ref.path)
        return str(caught.value)

    n, main = len(table), table["product"][0].as_py()
    product = table["product"].to_numpy()
    assert f"{n} vectors, where the manifest says {n - 1}" in refused(table.slice(1))
    assert refused(table.slice(1), n) == f"other.parquet: {n - 1} rows, where the manifest says {n}"
    assert "it has no column 'position' of int16" in refused(table.drop_columns(["position"]))
    strange = table.set_column(0, "product", pa.array(np.where(product == main, 5, product)))
    assert refused(strange) == "other.parquet: it has a picture of key 5, which has no row"
    other = int(product[-1])
    bare = table.set_column(0, "product", pa.array(np.where(product == main, other, product)))
    assert refused(bare) == f"other.parquet: it has no picture of key {main}"


def test_the_pictures_of_a_shard_say_so_only_where_there_are_several(pictured: tuple[Shop, Pictured], tmp_path: Path) -> None:
    shop, pictures = pictured
    found = [shard_pictures(shop.vectors_uri, [s]) for s in range(2)]
    assert pa.concat_tables(found).sort_by([("product", "ascending"), ("position", "ascending")]).equals(pictures.table())
    mains = Pictured(shop.keys[:5], np.zeros(5, np.int16), shop.vectors[:5])
    write_pictures(tmp_path, mains, 2)
    assert shard_pictures(str(tmp_path), [0]) is None


def test_the_truth_is_of_products(pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path], tmp_path: Path) -> None:
    """By the encoder's vectors and by what the index stores."""
    (shop, pictures), (manifest, folder) = pictured, flat
    xq = queries(np.random.default_rng(5), pictures)
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    expected, _ = best_products(pictures, xq, DEPTH)
    for truth in (exact_truth(shop.vectors_uri, 2, xq, tmp_path), stored_truth(searcher, xq)):
        np.testing.assert_allclose(truth.similarity, expected, atol=1e-4)
        assert all(len(set(row.tolist())) == DEPTH for row in truth.keys)


def test_a_product_is_asked_by_the_mean_of_its_pictures(
    pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path]
) -> None:
    manifest, folder = flat
    searcher = Searcher.open(manifest, lambda ref: folder / ref.path)
    for row in range(0, searcher.rows, 37):
        own = pictured[1].of(searcher.features.key[row : row + 1]).vectors
        mean = own.mean(axis=0)
        np.testing.assert_allclose(searcher.vector(row), mean / np.linalg.norm(mean), atol=1e-3)


def test_pictures_that_nothing_names_are_noticed(flat: tuple[IndexManifest, Path], tmp_path: Path) -> None:
    manifest, home = flat

    def detail(manifest: IndexManifest) -> str:
        done = check_index(manifest, lambda ref: (tmp_path if ref.path == "other.parquet" else home) / ref.path)
        return next(f"{c.passed}: {c.detail}" for c in done if c.name == "pictures")

    files = manifest.model_copy(update={"golden": manifest.segments[0].table})
    assert detail(files) == f"True: {sum(s.vectors for s in manifest.segments)} pictures of 300 live products"
    first = manifest.segments[0]
    assert first.pictures is not None
    table = read_pictures(home / first.pictures.table.path, first.pictures.rows, PICTURES.names)
    product, places = table["product"].to_numpy(), table["position"].to_numpy()
    further = int(np.flatnonzero(product[1:] == product[:-1])[0]) + 1
    for wrong, what in ((99, "it has picture 99 of product"), (int(places[further - 1]), ", twice")):
        position = places.copy()
        position[further] = wrong
        write_rows(tmp_path / "other.parquet", table.set_column(1, "position", pa.array(position)))
        pictures = SegmentPictures(rows=len(table), table=describe(tmp_path / "other.parquet", "other.parquet"))
        segments = (first.model_copy(update={"pictures": pictures}), *manifest.segments[1:])
        found = detail(files.model_copy(update={"segments": segments}))
        assert found.startswith("False")
        assert what in found


def test_pictures_are_counted_by_the_run_that_looked_at_them_last(
    pictured: tuple[Shop, Pictured], flat: tuple[IndexManifest, Path], tmp_path: Path
) -> None:
    (shop, live), (manifest, home) = pictured, flat
    some = np.unique(live.product)[:5]
    assert live_pictures(manifest, some, lambda ref: home / ref.path) == (len(live.of(some).product), 0)
    now = changed("one added", np.random.default_rng(1), live, some[:2])
    segments = add_delta(manifest, changes_of(shop, now, some[2:3], shop.keys), tmp_path / "h", prefix="h")
    later = manifest.model_copy(update={"segments": segments})
    left = len(now.product) + len(live.of(some[3:]).product)
    assert live_pictures(later, some, lambda ref: (tmp_path if ref.path.startswith("h/") else home) / ref.path) == (left, 0)

    def commit(run: str, bad: list[int], good: Pictured) -> EmbeddingCommit:
        write_pictures(tmp_path / "vectors" / run, good, 2)
        (tmp_path / "quarantine").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"key": pa.array([int(some[n]) for n in bad], pa.int64())}), tmp_path / f"quarantine/{run}.parquet"
        )
        uri = str(tmp_path / "vectors" / run)
        return EmbeddingCommit(uri=uri, store=uri, sha256="0" * 64, fingerprint="f", embedded=1, quarantined=0)

    commits = [
        commit("base", [0, 0, 1, 3], live),
        commit("one", [1], live.of(some[:2])),
        commit("two", [4, 4], live.of(some[:0])),
    ]
    assert quarantined_pictures(commits[:1], some) == 4
    assert quarantined_pictures(commits[:2], some) == 2, "of the first none is bad any more"
    assert quarantined_pictures(commits, some) == 4
    assert quarantined_pictures(commits, some[2:4]) == 1
    assert quarantined_pictures([], some) == 0
