"""Building: what is refused, what is kept, and that a killed build ends as if it had never been killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.contract.files import ContractError, verify
from serving.index.searcher import Searcher
from tasks.errors import VitrineError
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.families import FAMILIES, least_training, list_count
from tasks.index.template import Template, empty_index, train_template, training_vectors
from tests.index.shop import Shop, build_all, clustered, manifest_of, open_shop, write_vectors


def sums(built: list) -> list[tuple[str, str]]:
    return [(b.index.sha256, b.table.sha256) for b in built]


def test_the_table_describes_the_positions(shop: Shop, tmp_path: Path) -> None:
    searcher = open_shop(shop, tmp_path)
    place = {k: i for i, k in enumerate(shop.keys)}
    assert searcher.rows == searcher.live_rows == len(shop.ids)
    for row in range(0, searcher.rows, 37):
        i = place[searcher.features.key[row]]
        (columns,) = searcher.features.take(np.array([row]), ["product_id", "title", "colour", "price"])
        assert columns == {"product_id": shop.ids[i], "title": f"Thing {i}", "colour": ("red", "green")[i % 2], "price": float(i)}
        np.testing.assert_allclose(searcher.vector(row), shop.vectors[i], atol=1e-3)


def test_a_second_build_keeps_what_is_whole_and_mends_what_is_not(shop: Shop, tmp_path: Path) -> None:
    template, built = build_all(shop, tmp_path)
    file = tmp_path / "shard-0" / "base-00000.faiss"
    before = file.stat().st_mtime_ns
    _, again = build_all(shop, tmp_path)
    assert sums(again) == sums(built)
    assert file.stat().st_mtime_ns == before, "nothing was written again"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    _, mended = build_all(shop, tmp_path)
    assert sums(mended) == sums(built)
    other = build_shard(shop.vectors_uri, shop.snapshot.uri, replace(template, factory="SQfp16"), 0, tmp_path / "shard-0")
    assert sums([other]) != sums(built[:1]), "another template is another source"


KILLED = """
import itertools, json, sys, time
from pathlib import Path
from tasks.index import build
from tasks.index.template import Template
vectors, snapshot, template, folder = sys.argv[1:]
whole, pieces = build.shard_batches, itertools.count()
def one_by_one(uri, shard):
    for keys, vectors in whole(uri, shard):
        for start in range(0, len(keys), 20):
            if next(pieces) == 5:
                time.sleep(600)
            print("added", flush=True)
            yield keys[start:start + 20], vectors[start:start + 20]
build.shard_batches = one_by_one
build.build_shard(vectors, snapshot, Template(**json.loads(template)), 0, Path(folder))
print("done", flush=True)
"""


@pytest.mark.parametrize("family", ["flat", "ivf_fs_sq8"])
def test_a_killed_build_run_again_gives_the_same_segment(family: str, shop: Shop, wide_shop: Shop, tmp_path: Path) -> None:
    shop = shop if family == "flat" else wide_shop
    template, whole = build_all(shop, tmp_path / "whole", family)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, shop.vectors_uri, shop.snapshot.uri, json.dumps(asdict(template)), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        for _ in range(5):
            assert process.stdout.readline() == "added\n"
        os.kill(process.pid, signal.SIGKILL)
        assert "done\n" not in process.stdout.readlines()
    assert process.wait(60) == -signal.SIGKILL
    assert not (folder / "built.json").exists()
    again = build_shard(shop.vectors_uri, shop.snapshot.uri, template, 0, folder)
    assert sums([again]) == sums(whole[:1])


@pytest.mark.parametrize("spoil", ["nan", "zero", "doubled", "strange", "other shards"])
def test_vectors_that_cannot_be_right_are_refused_by_name(spoil: str, shop: Shop, tmp_path: Path) -> None:
    keys, vectors = shop.keys.copy(), shop.vectors.copy()
    shards, message = shop.shards, ""
    match spoil:
        case "nan":
            vectors[5, 3], message = np.nan, f"first that of key {keys[5]}"
        case "zero":
            vectors[5], message = 0, f"first that of key {keys[5]}"
        case "doubled":
            keys[1], vectors[1], message = keys[0], vectors[0], f"key {keys[0]} occurs twice"
        case "strange":
            keys[0], message = 2 * (2**61), f"key {2**62}, which is not in the snapshot"
        case "other shards":
            shards, message = 1, "written for another number of shards"
    write_vectors(tmp_path / "vectors", keys, vectors, shards)
    template = Template("flat", "Flat", 32, 2, len(keys))
    spoilt = 0 if shards == 1 else int(next(k for k in keys if str(k) in message) % 2)
    folder = tmp_path / "built"
    with pytest.raises(VitrineError, match=message):
        build_shard(str(tmp_path / "vectors"), shop.snapshot.uri, template, spoilt, folder)
    assert not folder.exists(), "nothing is half-written"


def test_vectors_of_another_dimension_are_refused(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(VitrineError, match="dimension 32, the template has 64"):
        build_shard(shop.vectors_uri, shop.snapshot.uri, Template("flat", "Flat", 64, 2, 600), 0, tmp_path)


def test_no_vectors_and_too_few_vectors_are_said_clearly(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(VitrineError, match="no product has a vector"):
        train_template(str(tmp_path / "nowhere"), IndexConfig(), tmp_path)
    with pytest.raises(VitrineError, match="needs at least 1248 training vectors and there are 600: use the family flat"):
        train_template(shop.vectors_uri, IndexConfig(family="ivf_flat"), tmp_path)
    assert not (tmp_path / "template.faiss").exists()


def test_many_lists_are_trained_on_more_than_the_usual_sample(wide_shop: Shop, tmp_path: Path) -> None:
    template = train_template(wide_shop.vectors_uri, IndexConfig(family="ivf_flat", sample=1000), tmp_path)
    assert template.factory == "IVF256,Flat"
    assert int(template.reason.split()[2]) >= 256 * 39


@pytest.mark.parametrize("rows", [10_737_418, 10_737_419, 42_949_673, 1_000_000_000])
def test_a_sample_is_never_too_small_for_its_lists(rows: int) -> None:
    """10,737,419 rows are the first to have 8192 lists, whose training needs more than the usual 200,000 vectors."""
    family = FAMILIES["ivf_fs_sq8"]
    wanted = training_vectors(family, rows, IndexConfig())
    drawn = np.random.default_rng(7).binomial(rows, wanted / rows, 10_000)
    assert drawn.min() >= least_training(family, rows) == 39 * list_count(rows)
    assert wanted < max(200_000, 1.02 * 39 * list_count(rows)) + 1


def test_all_equal_vectors_build_and_answer(shop: Shop, wide_shop: Shop, tmp_path: Path) -> None:
    same = np.repeat(wide_shop.vectors[:1], len(wide_shop.keys), axis=0)
    write_vectors(tmp_path / "vectors", wide_shop.keys, same, wide_shop.shards)
    equal = replace(wide_shop, vectors_uri=str(tmp_path / "vectors"), vectors=same)
    for family in ("flat", "ivf_fs_sq8", "hnsw_sq8"):
        searcher = open_shop(equal, tmp_path / family, family)
        found = searcher.search(same[:1], 20)
        assert (found.rows >= 0).all()
        np.testing.assert_allclose(found.similarity, 1, atol=5e-3)


def test_an_empty_shard_is_a_segment_without_rows(shop: Shop, tmp_path: Path) -> None:
    odd = shop.keys % 2 == 1
    write_vectors(tmp_path / "vectors", shop.keys[odd], shop.vectors[odd], 2)
    half = replace(shop, vectors_uri=str(tmp_path / "vectors"))
    searcher = open_shop(half, tmp_path)
    assert searcher.rows == odd.sum()
    assert (searcher.search(shop.vectors[:3], 5).rows >= 0).all()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "swapped", "not parquet"])
def test_a_damaged_segment_is_never_opened(damage: str, shop: Shop, tmp_path: Path) -> None:
    _, built = build_all(shop, tmp_path)
    manifest = manifest_of(shop, built)
    file, table = tmp_path / "shard-0" / "base-00000.faiss", tmp_path / "shard-0" / "base-00000.parquet"
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        case "flipped":
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        case "missing":
            file.unlink()
        case "swapped":
            file.write_bytes((tmp_path / "shard-1" / "base-00001.faiss").read_bytes())
        case "not parquet":
            table.write_bytes(b"PAR0" * (table.stat().st_size // 4))
    with pytest.raises(ContractError, match=r"base-00000\.(faiss|parquet)"):
        Searcher.open(manifest, lambda ref: verify(tmp_path / ref.path, ref))


def test_a_manifest_that_does_not_fit_is_refused(shop: Shop, tmp_path: Path) -> None:
    _, built = build_all(shop, tmp_path)
    manifest = manifest_of(shop, built)
    with pytest.raises(ContractError, match="shard 1 of 2 has no base segment"):
        Searcher.open(manifest.model_copy(update={"segments": manifest.segments[:1]}), lambda ref: tmp_path / ref.path)
    wrong = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"dim": 64})})
    with pytest.raises(ContractError, match="dimension 32, where the encoder gives 64"):
        Searcher.open(wrong, lambda ref: tmp_path / ref.path)


def test_a_template_is_taken_over_until_the_vectors_drift(wide_shop: Shop, tmp_path: Path) -> None:
    config = IndexConfig(shards=2, family="ivf_fs_sq8")
    first = train_template(wide_shop.vectors_uri, config, tmp_path / "first")
    again = train_template(wide_shop.vectors_uri, config, tmp_path / "second", previous=first)
    assert (again.sha256, again.file) == (first.sha256, first.file)
    assert again.reason.startswith("taken over")
    rng = np.random.default_rng(99)
    write_vectors(tmp_path / "vectors", wide_shop.keys, clustered(rng, len(wide_shop.keys), 32, clusters=300), 2)
    moved = train_template(str(tmp_path / "vectors"), config, tmp_path / "third", previous=first)
    assert moved.sha256 != first.sha256
    assert "the mean cosine to the centroids fell" in moved.reason
    other = train_template(wide_shop.vectors_uri, replace(config, family="ivf_flat"), tmp_path / "fourth", previous=first)
    assert "its family ivf_fs_sq8 is now ivf_flat" in other.reason


@pytest.mark.parametrize("family", ["hnsw_sq8", "hnsw_fp16"])
def test_a_graph_is_trained_anew_as_nothing_tells_whether_its_template_fits(family: str, wide_shop: Shop, tmp_path: Path) -> None:
    """Eight bits for the range of the vectors of before cut off what has moved out of it."""
    config = IndexConfig(shards=2, family=family)
    narrow = np.zeros_like(wide_shop.vectors)
    narrow[:, :2] = wide_shop.vectors[:, :2] / np.linalg.norm(wide_shop.vectors[:, :2], axis=1, keepdims=True)
    write_vectors(tmp_path / "vectors", wide_shop.keys, narrow, 2)
    before = train_template(str(tmp_path / "vectors"), config, tmp_path / "before")
    made = train_template(wide_shop.vectors_uri, config, tmp_path / "made", previous=before)
    assert made.reason.startswith("trained on")
    assert "has no lists that tell" in made.reason
    index = empty_index(made)
    index.add(wide_shop.vectors[:100])
    assert (index.reconstruct_n(0, 100) * wide_shop.vectors[:100]).sum(axis=1).min() > 0.99


def test_parquet_tables_have_no_rows_of_other_shards(shop: Shop, tmp_path: Path) -> None:
    _, built = build_all(shop, tmp_path)
    for b in built:
        keys = pq.read_table(Path(b.uri) / b.table.path)["key"].to_numpy()
        assert (keys % 2 == b.shard).all()
        assert (np.diff(keys) > 0).all()


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("family", ["flat", "ivf_fs_sq8"])
def test_an_opened_segment_is_memory_mapped(family: str, shop: Shop, wide_shop: Shop, tmp_path: Path) -> None:
    searcher = open_shop(shop if family == "flat" else wide_shop, tmp_path, family)
    assert str(tmp_path / "shard-0" / "base-00000.faiss") in Path("/proc/self/maps").read_text()
    assert (searcher.search(shop.vectors[:2], 5).rows >= 0).all()
