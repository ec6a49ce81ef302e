"""The verifier finds each kind of damage and names it."""

from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from serving.contract.files import FileRef, describe
from serving.contract.manifest import IndexManifest, Segment, read_manifest
from serving.contract.segments import read_index, read_rows, write_index
from serving.index.searcher import Searcher
from tasks.catalog.changes.event import delete, upsert
from tasks.catalog.changes.ledger import SCHEMA, entries
from tasks.catalog.snapshot import product_table
from tasks.index.delta import add_delta
from tasks.index.delta_version import ArtifactLocation, EmbeddedRows, mark_membership, next_version
from tasks.index.families import FAMILIES
from tasks.index.index_type import family_index_type, index_type
from tasks.index.verify_version import Check, _vectors, check_index
from tasks.index.version_manifest import with_golden
from tests.index.shop import Shop, build_all, clustered, manifest_of
from tests.index.test_delta import changes_of


@pytest.fixture
def version(shop: Shop, tmp_path: Path) -> IndexManifest:
    _, built = build_all(shop, tmp_path)
    manifest = manifest_of(shop, built)
    searcher = Searcher.open(manifest, lambda ref: tmp_path / ref.path)
    manifest = with_golden(manifest, searcher, clustered(np.random.default_rng(1), 20, 32), tmp_path, "", "")
    return manifest.model_copy(update={"golden": manifest.golden.model_copy(update={"path": "golden.npz"})})


def checked(manifest: IndexManifest, folder: Path) -> list[Check]:
    return check_index(manifest, lambda ref: folder / ref.path)


def broken(manifest: IndexManifest, folder: Path) -> list[tuple[str, str]]:
    return [(c.name, c.detail) for c in checked(manifest, folder) if c.passed is False]


def with_segment(manifest: IndexManifest, which: int = 0, **changed: object) -> IndexManifest:
    """The manifest with one of its segments changed."""
    segments = list(manifest.segments)
    segments[which] = segments[which].model_copy(update=changed)
    return manifest.model_copy(update={"segments": tuple(segments)})


def with_counts(manifest: IndexManifest, **changed: int) -> IndexManifest:
    return manifest.model_copy(update={"counts": manifest.counts.model_copy(update=changed)})


def hour_later(
    shop: Shop, version: IndexManifest, folder: Path, upserts: dict[int, np.ndarray], deletes: set[int]
) -> IndexManifest:
    """The version an hour later, with its ledger; of the upserts those whose vector is empty have no usable picture."""
    now = datetime.now(UTC)
    events = [delete(shop.ids[n], now) for n in deletes]
    events += [upsert(f"P{n:05d}", now, {"title": "new", "image": "new.jpg"}) for n in upserts]
    base = pa.concat_tables([read_rows(folder / s.table.path) for s in version.segments])["key"].combine_chunks()
    changed = mark_membership(entries(events, now), product_table(shop.snapshot.uri, ["key"]), base)
    usable = {n: v for n, v in upserts.items() if len(v)}
    rows = changes_of(shop, usable, set())
    made, _ = next_version(
        version, SCHEMA.empty_table(), changed, EmbeddedRows(rows.rows, rows.vectors), ArtifactLocation(folder / "hour", "", "hour"),
        lambda ref: folder / ref.path,
    )  # fmt: skip
    made = made.model_copy(update={"parent": version.id})
    searcher = Searcher.open(made, lambda ref: folder / ref.path)
    made = with_golden(made, searcher, clustered(np.random.default_rng(1), 20, 32), folder / "hour", "", "hour")
    return made


def test_a_whole_version_passes_every_check(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    done = checked(version, tmp_path)
    assert [c.name for c in done] == ["checksums", "segments", "keys", "vectors", "counts", "snapshot", "golden answers"]
    assert all(c.passed for c in done)
    assert done[2].detail == "600 live products, each once"


@pytest.mark.parametrize("name", ["shard-0/base-00000.faiss", "shard-1/base-00001.parquet", "golden.npz"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_any_damaged_file_is_named_and_nothing_is_opened(name: str, damage: str, version: IndexManifest, tmp_path: Path) -> None:
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    match damage:
        case "flipped":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "truncated":
            file.write_bytes(data[:-1])
        case "missing":
            file.unlink()
    ((check, detail),) = broken(version, tmp_path)
    assert check == "checksums"
    assert Path(name).name in detail


def test_a_segment_that_the_manifest_forgot_is_noticed(version: IndexManifest, tmp_path: Path) -> None:
    forgetful = version.model_copy(update={"segments": version.segments[:1]})
    assert broken(forgetful, tmp_path) == [("segments", "index v1: shard 1 of 2 has no base segment in the manifest")]


def test_a_delta_without_its_tombstones_leaves_a_product_live_twice(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    changes = changes_of(shop, {7: clustered(np.random.default_rng(1), 1, 32)[0]}, set())
    segments = add_delta(version, changes, tmp_path / "hour", prefix="hour")
    whole = with_counts(version, indexed=601).model_copy(update={"segments": segments})
    assert "keys" not in dict(broken(whole, tmp_path)), "with its tombstone the product is live once"
    without = whole.model_copy(update={"segments": tuple(s for s in segments if s.kind != "tombstones")})
    assert ("keys", f"key {shop.keys[7]} is live in more than one segment; a tombstone is missing") in broken(without, tmp_path)


def test_counts_that_do_not_add_up_and_lost_products_are_found(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    fewer = with_counts(version, servable=599)
    assert broken(fewer, tmp_path) == [("counts", "the manifest counts 599 servable products and there are 600")]
    deleted = add_delta(version, changes_of(shop, {}, {7}), tmp_path / "hour", prefix="hour")
    lost = with_counts(version, servable=599, embedded=599, tombstoned=1, quarantined=1).model_copy(update={"segments": deleted})
    found = dict(broken(lost, tmp_path))
    assert found["snapshot"] == "1 products of the catalogue cannot be found and 1 are quarantined: P00007"


@pytest.mark.parametrize("name", ["catalogue", "embedded", "quarantined", "indexed", "tombstoned", "servable"])
def test_every_count_is_compared_with_what_there_is(name: str, version: IndexManifest, tmp_path: Path) -> None:
    ((check, detail),) = [b for b in broken(with_counts(version, **{name: 77}), tmp_path) if b[0] != "snapshot"]
    assert check == "counts"
    assert "77" in detail


def test_an_hourly_version_is_held_against_its_snapshot_and_ledger(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    """Products that were added, changed, deleted or lack a usable picture are accounted for; a ledger that forgets one is not."""
    vectors = clustered(np.random.default_rng(5), 2, 32)
    later = hour_later(shop, version, tmp_path, {7: vectors[0], 900: vectors[1], 901: vectors[:0], 8: vectors[:0]}, {3, 4})
    done = checked(later, tmp_path)
    assert [(c.name, c.detail) for c in done if not c.passed] == []
    (seen,) = [c.detail for c in done if c.name == "snapshot"]
    assert seen == "every product of one with 6 changes is servable or one of 2 in quarantine"
    found = dict(broken(later.model_copy(update={"changes": ()}), tmp_path))
    assert found["snapshot"].startswith("3 products of the catalogue cannot be found and 2 are quarantined: P0000")
    ledger = tmp_path / "hour" / "changes.parquet"
    ledger.write_bytes(ledger.read_bytes()[:-1] + b"?")
    ((name, detail),) = broken(later, tmp_path)
    assert (name, "hour/changes.parquet" in detail) == ("checksums", True)


def test_a_snapshot_that_is_gone_is_said_and_one_that_is_another_is_broken(
    shop: Shop, version: IndexManifest, tmp_path: Path
) -> None:
    gone = version.model_copy(update={"snapshot": version.snapshot.model_copy(update={"uri": str(tmp_path / "gone")})})
    (unknown,) = [c for c in checked(gone, tmp_path) if not c.passed]
    assert (unknown.name, unknown.passed) == ("snapshot", None)
    assert "gone is not there (any more), so lost products would not be noticed" in unknown.detail
    for name, value in {"rows": 3, "content_sha256": "0" * 64, "id": "two"}.items():
        other = version.model_copy(update={"snapshot": version.snapshot.model_copy(update={name: value})})
        ((check, detail),) = broken(other, tmp_path)
        assert check == "snapshot"
        assert detail.startswith(f"{shop.snapshot.uri}: its {name} is ")


def test_rows_and_families_that_are_not_the_files_own_are_found(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    assert "rows, where the manifest says 1" in dict(broken(with_segment(version, rows=1), tmp_path))["segments"]
    another = dict(broken(with_segment(version, family="hnsw_sq8"), tmp_path))["segments"]
    assert "the index beside it is not one of family hnsw_sq8" in another
    assert "there is no index family 'best'" in dict(broken(with_segment(version, family="best"), tmp_path))["segments"]
    later = hour_later(shop, version, tmp_path, {}, {7})
    stones = next(n for n, s in enumerate(later.segments) if s.kind == "tombstones")
    assert "1 rows, where the manifest says 99999" in dict(broken(with_segment(later, stones, rows=99999), tmp_path))["segments"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_each_family_makes_is_of_its_kind_and_of_no_other(family: str, searchers: dict[str, Searcher]) -> None:
    engine = searchers[family].segments[0].engine
    assert engine is not None
    assert [name for name in FAMILIES if family_index_type(name, 32) == index_type(engine.index)] == [family]


@pytest.mark.parametrize(("value", "length"), [(50.0, "283"), (0.0, "0"), (np.nan, "nan")])
def test_a_stored_vector_that_is_no_unit_vector_is_found(
    value: float, length: str, version: IndexManifest, tmp_path: Path
) -> None:
    first = version.segments[0]
    assert first.index is not None
    index = read_index(tmp_path / first.index.path, 32, first.rows)
    vectors = index.reconstruct_n(0, first.rows)
    vectors[3] = value
    other = faiss.IndexFlat(32, faiss.METRIC_INNER_PRODUCT)
    other.add(vectors)
    write_index(tmp_path / "other.faiss", other)
    forged = with_segment(version, index=describe(tmp_path / "other.faiss", "other.faiss"))
    product = read_rows(tmp_path / first.table.path)["product_id"][3].as_py()
    assert dict(broken(forged, tmp_path))["vectors"].endswith(f"of product '{product}' has length {length}, not 1")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_stored_vectors_of_every_family_are_taken_for_what_they_are(family: str, searchers: dict[str, Searcher]) -> None:
    whole = 12000 if FAMILIES[family].exact else 0
    assert _vectors(searchers[family]) == f"12000 of 12000 stored vectors are finite, {whole} of them of unit length"


def test_shards_that_were_swapped_are_found(version: IndexManifest, tmp_path: Path) -> None:
    swapped = tuple(Segment(**(s.model_dump() | {"shard": 1 - s.shard})) for s in version.segments)
    found = dict(broken(version.model_copy(update={"segments": swapped}), tmp_path))
    assert "holds keys of other shards" in found["keys"]


def test_answers_that_changed_are_found(version: IndexManifest, tmp_path: Path) -> None:
    with np.load(tmp_path / "golden.npz") as golden:
        content = {n: golden[n] for n in golden.files}
    content["similarity"] = content["similarity"] + 0.01
    np.savez(tmp_path / "golden.npz", **content)
    forged = version.model_copy(update={"golden": describe(tmp_path / "golden.npz", "golden.npz")})
    ((name, detail),) = broken(forged, tmp_path)
    assert name == "golden answers"
    assert "similarities differ by 0.01" in detail


def test_an_encoder_that_is_not_the_indexs_own_is_found(tmp_path: Path) -> None:
    """The release's encoder passes; one that was made anew, or whose fingerprint the manifest does not name, does not."""
    from tests.releases import make_release
    from tests.tiny import tiny_encoder

    make_release(tmp_path)
    manifest = read_manifest(tmp_path / "release" / "1" / "manifest.json", IndexManifest)
    own = tmp_path / "release" / "encoders" / manifest.encoder.manifest.sha256

    def locate(ref: FileRef) -> Path:
        return tmp_path / "release" / "files" / ref.sha256

    assert all(c.passed for c in check_index(manifest, locate, lambda: own))
    tiny_encoder(tmp_path / "other", seed=5)
    (other,) = [c for c in check_index(manifest, locate, lambda: tmp_path / "other") if not c.passed]
    assert (other.name, "encoder.json" in other.detail) == ("encoder", True)
    forged = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"query_fingerprint": "0" * 64})})
    (wrong,) = [c for c in check_index(forged, locate, lambda: own) if not c.passed]
    assert "fingerprint differs" in wrong.detail
