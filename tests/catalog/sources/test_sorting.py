"""Files in order of product_id, whether they fit into memory or not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.snapshot import product_table, take_snapshot
from tasks.catalog.sources import sorting
from tasks.catalog.sources.sorting import sorted_batches


def batches(ids: list[str], size: int = 100) -> list[pa.RecordBatch]:
    rows = pa.table({"product_id": ids, "n": range(len(ids))}).combine_chunks()
    return rows.to_batches(max_chunksize=size)


@pytest.mark.parametrize("most", [1 << 30, 4000, 1])
def test_a_file_larger_than_memory_comes_in_the_same_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", most)
    drawn = np.random.default_rng(1).integers(0, 500, 3000)
    ids = [f"Ä{n}" if n % 7 == 0 else f"p{n}" for n in drawn]
    found = pa.Table.from_batches(sorted_batches(batches(ids), 64))
    expected = sorted(enumerate(ids), key=lambda pair: (pair[1], pair[0]))
    assert found["product_id"].to_pylist() == [i for _, i in expected]
    assert sorted(found["n"].to_pylist()) == list(range(3000))


def test_one_id_in_every_row_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 1000)
    assert pa.Table.from_batches(sorted_batches(batches(["same"] * 500), 64)).num_rows == 500
    assert list(sorted_batches([], 64)) == []


def test_a_snapshot_of_a_large_folder_is_that_of_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(2).permutation(2000)
    table = pa.table({"product_id": [f"p{n}" for n in order], "title": ["T"] * 2000, "image": ["a.jpg"] * 2000})
    pq.write_table(table, tmp_path / "products.parquet", row_group_size=300)
    small = take_snapshot(str(tmp_path), str(tmp_path / "s"), "small")
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 5000)
    large = take_snapshot(str(tmp_path), str(tmp_path / "s"), "large")
    assert large.content_sha256 == small.content_sha256
    assert product_table(large.uri)["product_id"].to_pylist() == sorted(f"p{n}" for n in order)


def test_large_files_are_sorted_without_a_name_on_disk_that_a_kill_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(sorting.tempfile, "tempdir", str(tmp_path))
    found = sorted_batches(batches([f"p{n}" for n in range(500)]), 64)
    next(found)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_dictionaries_may_differ_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, brands in enumerate(
        (pa.array(["x", "y"]).dictionary_encode(), pa.array(["z", "y"]).dictionary_encode(), ["p", "q"])
    ):
        rows = {"product_id": [f"{number}-1", f"{number}-0"], "title": ["T"] * 2, "image": ["a.jpg"] * 2, "brand": brands}
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    monkeypatch.setattr(sorting, "IN_MEMORY_BYTES", 1)
    taken = take_snapshot(f"parquet:{tmp_path}", str(tmp_path / "s"), "s")
    assert product_table(taken.uri)["brand"].to_pylist() == ["y", "x", "y", "z", "q", "p"]
