"""The embedding store: committed parts count, damaged ones are named, and vectors come back in the order asked for."""

import hashlib
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.contract.palette import PALETTE, PALETTE_TYPE
from tasks.embed.shard_vectors import write_shards
from tasks.embed.store import EmbeddingStore, part_name, rejected_images
from tasks.errors import VitrineError
from tasks.index.vectors import shard_batches, shard_palettes

DIM = 8


def sha(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIM).astype(np.float16)


def colours(number: int) -> bytes:
    return bytes([number, *range(12)])


def chunk(store: EmbeddingStore, numbers: list[int]) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([vector(n) for n in numbers])), DIM)
    side, now = pa.array([9] * len(numbers), pa.int32()), pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * len(numbers))
    return pa.table({
        "image_sha256": pa.array([sha(n) for n in numbers], pa.binary(32)), "vector": lists,
        PALETTE: pa.array([colours(n) for n in numbers], PALETTE_TYPE), "width": side, "height": side, "embedded_at": now,
    })  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore(str(tmp_path / "store"), DIM)
    for start in range(0, 60, 20):
        store.write(chunk(store, list(range(start, start + 20))), [], "r1")
    return store


def test_vectors_come_back_in_the_order_asked_for_with_repeats(store: EmbeddingStore) -> None:
    wanted = [41, 3, 3, 59, 0, 41]
    found = store.gather(pa.array([sha(n) for n in wanted], pa.binary(32)))[0]
    np.testing.assert_array_equal(found, np.stack([vector(n) for n in wanted]))


def test_a_slice_of_a_column_is_looked_up_by_its_own_rows(store: EmbeddingStore) -> None:
    wanted = pa.array([sha(n) for n in range(30)], pa.binary(32)).slice(10, 5)
    np.testing.assert_array_equal(store.gather(wanted)[0], np.stack([vector(n) for n in range(10, 15)]))


def test_an_unknown_image_is_named(store: EmbeddingStore) -> None:
    with pytest.raises(KeyError, match=sha(99).hex()):
        store.gather(pa.array([sha(1), sha(99)], pa.binary(32)))[0]


def test_equal_first_bytes_are_not_equal_images(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path), DIM)
    twins = [b"same-8-b" + bytes([n]) * 24 for n in (1, 2)]
    table = chunk(store, [1, 2]).set_column(0, "image_sha256", pa.array(twins, pa.binary(32)))
    store.write(table, [], "r")
    np.testing.assert_array_equal(store.gather(pa.array(twins[::-1], pa.binary(32)))[0], np.stack([vector(2), vector(1)]))


def test_a_part_without_its_commit_does_not_count(store: EmbeddingStore, tmp_path: Path) -> None:
    lost = store.commits()[0]
    (tmp_path / "store" / "_commits" / f"{lost.name}.json").unlink()
    assert len(store.checksums()) == 40
    assert store.committed(lost.name) is None


def test_the_same_chunk_written_twice_is_one_part(store: EmbeddingStore) -> None:
    before = store.commits()
    again = store.write(chunk(store, list(range(20))), [], "r1")
    assert again in before
    assert store.commits() == before


def test_a_part_is_named_by_its_images_not_their_order() -> None:
    assert part_name([sha(1), sha(2)]) == part_name([sha(2), sha(1)]) != part_name([sha(1)])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_part_is_named_with_what_to_do(store: EmbeddingStore, tmp_path: Path, damage: str) -> None:
    commit = store.commits()[1]
    file = tmp_path / "store" / f"{commit.name}.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(VitrineError, match=f"{commit.name}.*delete .*json to embed its images again"):
        store.gather(pa.array([sha(0)], pa.binary(32)))[0]


def test_a_chunk_of_nothing_but_rejected_images_is_committed_without_a_part(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path), DIM)
    rows = [
        {"sha256": sha(1).hex(), "image_uri": "a", "reason": "truncated", "detail": "…"},
        {"sha256": sha(2).hex(), "image_uri": "b", "reason": "timeout", "detail": "…"},
    ]
    commit = store.write(store.schema.empty_table(), rows, "r")
    assert store.commits() == [commit]
    assert not list(tmp_path.glob("*.parquet"))
    assert set(rejected_images([commit])) == {sha(1), sha(2)}
    assert set(rejected_images([commit], lasting=True)) == {sha(1)}, "a timeout says nothing about the bytes"


@pytest.mark.parametrize("pass_bytes", [1 << 20, 2 * DIM * 7])
def test_shards_hold_every_vector_once_in_order_of_key(store: EmbeddingStore, tmp_path: Path, pass_bytes: int) -> None:
    keys = np.sort(np.random.default_rng(0).choice(1000, 60, replace=False)).astype(np.int64)
    usable = pa.table({"key": keys, "sha256": pa.array([sha(n) for n in range(60)], pa.binary(32))})
    write_shards(usable, store, store.commits(), str(tmp_path / "out"), 3, pass_bytes)
    seen: dict[int, np.ndarray] = {}
    for shard in range(3):
        pieces = list(shard_batches(str(tmp_path / "out"), shard, unit=False))
        found = np.concatenate([k for k, _ in pieces])
        assert (np.diff(found) > 0).all()
        assert (found % 3 == shard).all()
        seen |= dict(zip(found.tolist(), np.concatenate([v for _, v in pieces]), strict=True))
        palettes = shard_palettes(str(tmp_path / "out"), [shard])
        assert palettes is not None
        assert palettes.to_pylist() == [colours(keys.tolist().index(key)) for key in found.tolist()]
    assert sorted(seen) == keys.tolist()
    for row, key in enumerate(keys.tolist()):
        np.testing.assert_array_equal(seen[key], vector(row))


def test_a_pass_over_the_store_holds_nothing_of_the_one_before(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes held at once doubled the memory of ten million vectors."""
    gather, held = store.gather, []

    def watched(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        assert all(gone() is None for gone in held)
        found = gather(*arguments)
        held.extend(weakref.ref(array) for array in found)
        return found

    monkeypatch.setattr(store, "gather", watched)
    usable = pa.table({"key": np.arange(60), "sha256": pa.array([sha(n) for n in range(60)], pa.binary(32))})
    write_shards(usable, store, store.commits(), str(tmp_path / "out"), 3, 2 * DIM * 7)
    assert len(held) > 2


def test_a_part_from_before_palettes_gives_its_vectors_and_no_colours(tmp_path: Path, store: EmbeddingStore) -> None:
    commit = store.commits()[0]
    file = tmp_path / "store" / f"{commit.name}.parquet"
    pq.write_table(pq.read_table(file).drop_columns([PALETTE]), file)
    old = replace(commit, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), bytes=file.stat().st_size)
    wanted = store.part(old, ["image_sha256"])["image_sha256"].combine_chunks()
    sha_numbers = {sha(n): n for n in range(60)}
    vectors, palettes = store.gather(wanted, [old])
    np.testing.assert_array_equal(vectors, np.stack([vector(sha_numbers[s.as_py()]) for s in wanted]))
    assert len(palettes) == 20
    assert not palettes.any()


def test_an_empty_shard_is_an_empty_file(tmp_path: Path, store: EmbeddingStore) -> None:
    usable = pa.table({"key": np.array([4], np.int64), "sha256": pa.array([sha(1)], pa.binary(32))})
    write_shards(usable, store, store.commits(), str(tmp_path / "out"), 2)
    assert sum(len(k) for k, _ in shard_batches(str(tmp_path / "out"), 1)) == 0
