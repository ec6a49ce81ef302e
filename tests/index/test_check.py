"""The verifier finds each kind of damage and names it."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.files import FileRef
from serving.contract.manifest import IndexManifest, Segment, read_manifest
from serving.searcher import Searcher
from tasks.index.assemble import with_golden
from tasks.index.check import Check, check_index
from tasks.index.delta import add_delta
from tests.index.shop import Shop, build_all, clustered, manifest_of
from tests.index.test_delta import changes_of


@pytest.fixture
def version(shop: Shop, tmp_path: Path) -> IndexManifest:
    _, built = build_all(shop, tmp_path)
    manifest = manifest_of(shop, built)
    searcher = Searcher.open(manifest, lambda ref: tmp_path / ref.path)
    manifest = with_golden(manifest, searcher, clustered(np.random.default_rng(1), 20, 32), tmp_path, "", "")
    return manifest.model_copy(update={"golden": manifest.golden.model_copy(update={"path": "golden.npz"})})


def checked(manifest: IndexManifest, folder: Path, snapshot_uri: str = "") -> list[Check]:
    return check_index(manifest, lambda ref: folder / ref.path, snapshot_uri)


def broken(manifest: IndexManifest, folder: Path, snapshot_uri: str = "") -> list[tuple[str, str]]:
    return [(c.name, c.detail) for c in checked(manifest, folder, snapshot_uri) if not c.passed]


def test_a_whole_version_passes_every_check(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    done = checked(version, tmp_path, shop.snapshot.uri)
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
    whole = version.model_copy(update={"segments": segments, "counts": version.counts.model_copy(update={"indexed": 601})})
    assert "keys" not in dict(broken(whole, tmp_path)), "with its tombstone the product is live once"
    without = whole.model_copy(update={"segments": tuple(s for s in segments if s.kind != "tombstones")})
    assert ("keys", f"key {shop.keys[7]} is live in more than one segment; a tombstone is missing") in broken(without, tmp_path)


def test_counts_that_do_not_add_up_and_lost_products_are_found(shop: Shop, version: IndexManifest, tmp_path: Path) -> None:
    counts = version.counts.model_copy(update={"servable": 599})
    assert broken(version.model_copy(update={"counts": counts}), tmp_path) == [
        ("counts", "the manifest counts 599 servable products and there are 600")
    ]
    deleted = add_delta(version, changes_of(shop, {}, {7}), tmp_path / "hour", prefix="hour")
    lost = version.model_copy(update={"segments": deleted, "counts": counts})
    found = dict(broken(lost, tmp_path, shop.snapshot.uri))
    assert "1 products of the snapshot cannot be found and 0 are quarantined: P00007" in found["snapshot"]


def test_shards_that_were_swapped_are_found(version: IndexManifest, tmp_path: Path) -> None:
    swapped = tuple(Segment(**(s.model_dump() | {"shard": 1 - s.shard})) for s in version.segments)
    found = dict(broken(version.model_copy(update={"segments": swapped}), tmp_path))
    assert "holds keys of other shards" in found["keys"]


def test_answers_that_changed_are_found(version: IndexManifest, tmp_path: Path) -> None:
    from serving.contract.files import describe

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

    assert all(c.passed for c in check_index(manifest, locate, manifest.snapshot.uri, own))
    tiny_encoder(tmp_path / "other", seed=5)
    (other,) = [c for c in check_index(manifest, locate, "", tmp_path / "other") if not c.passed]
    assert (other.name, "encoder.json" in other.detail) == ("encoder", True)
    forged = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"query_fingerprint": "0" * 64})})
    (wrong,) = [c for c in check_index(forged, locate, "", own) if not c.passed]
    assert "fingerprint differs" in wrong.detail
