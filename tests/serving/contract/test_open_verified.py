"""A file that was verified is the file that is opened."""

import gc
import os
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from serving.contract.files import DESCRIPTORS, ContractError, describe, open_verified
from serving.contract.segments import read_index, read_rows, write_index, write_rows

pytestmark = pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="open files have no paths on this system")


def test_another_file_under_the_same_name_is_not_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "segment", tmp_path / "other"
    path.write_bytes(b"verified")
    other.write_bytes(b"put there")
    held = open_verified(path, describe(path, "segment"))
    other.replace(path)
    assert held.read_bytes() == b"verified"
    assert held.name == "segment"
    path.unlink()
    assert held.read_bytes() == b"verified"


def test_faiss_and_parquet_open_what_was_verified(tmp_path: Path) -> None:
    table, index = tmp_path / "table", tmp_path / "index"
    write_rows(table, pa.table({"key": [7]}))
    flat = faiss.IndexFlatIP(4)
    flat.add(np.eye(4, dtype=np.float32))
    write_index(index, flat)
    rows, vectors = (open_verified(path, describe(path, path.name)) for path in (table, index))
    for path in (table, index):
        path.unlink()
        path.write_bytes(b"something else")
    assert read_rows(rows)["key"].to_pylist() == [7]
    assert read_index(vectors, 4, 4).ntotal == 4
    with pytest.raises(ContractError, match=r"^table: not a readable Parquet file"):
        read_rows(open_verified(table, describe(table, "table")))


def test_descriptors_are_closed_when_the_path_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"verified")
    ref = describe(path, "segment")
    for _ in range(10):
        open_verified(path, ref).read_bytes()
        path.write_bytes(b"x")
        with pytest.raises(ContractError, match="1 bytes where the manifest says 8"):
            open_verified(path, ref)
        path.write_bytes(b"verified")
    gc.collect()
    assert [fd for fd in DESCRIPTORS.iterdir() if fd.is_symlink() and os.path.realpath(fd) == str(path)] == []


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"verified")
    ref = describe(path, "segment")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ContractError, match="the file is missing"):
        open_verified(path, ref)
