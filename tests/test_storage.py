"""Files by uri: whole or not at all, on a local folder and on a real S3 server over HTTP."""

import hashlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tasks import storage
from tasks.errors import StoreAway, VitrineError
from tests.relay import Relay
from tests.servers import s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "s3":
        return str(tmp_path / "store") if request.param == "local" else (tmp_path / "store").as_uri()
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return f"s3://shop/{tmp_path.name}"


def test_what_is_written_is_read_back_with_its_size_and_checksum(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    data = bytes(range(256)) * 20_000  # more than one chunk
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.size(uri) == len(data)
    import hashlib

    assert storage.sha256(uri) == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_not_there(root: str) -> None:
    uri = storage.join(root, "none")
    assert not storage.exists(uri)
    assert storage.validator(uri) is None
    assert storage.list_files(uri) == []
    storage.delete(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_a_writer_that_fails_leaves_nothing(root: str) -> None:
    uri = storage.join(root, "half.bin")

    def fail() -> None:
        with storage.writer(uri) as stream:
            stream.write(b"x" * 3_000_000)
            raise RuntimeError("the process has a bad day")

    with pytest.raises(RuntimeError, match="bad day"):
        fail()
    assert not storage.exists(uri)
    assert storage.list_files(root) == []


def test_a_file_that_is_replaced_is_never_half_of_each(root: str) -> None:
    uri = storage.join(root, "x.json")
    storage.write_json(uri, {"n": 1})
    before = storage.validator(uri)
    storage.write_json(uri, {"n": 22})
    assert storage.read_json(uri) == {"n": 22}
    assert storage.validator(uri) != before
    assert storage.list_files(root) == [storage.list_files(root, ".json")[0]]


def test_a_listing_is_sorted_filtered_and_readable(root: str) -> None:
    for name in ("b.json", "a.json", "c.txt", "deep/d.json"):
        storage.write_bytes(storage.join(root, name), name.encode())
    names = [uri.rsplit("/", 1)[1] for uri in storage.list_files(root, ".json")]
    assert names == ["a.json", "b.json"]
    everything = storage.list_files(root, recursive=True)
    assert [storage.read_bytes(u).decode().rsplit("/", 1)[-1] for u in everything] == ["a.json", "b.json", "c.txt", "d.json"]
    storage.delete(everything[0])
    assert len(storage.list_files(root, recursive=True)) == 3


def test_parquet_goes_through_the_same_door(root: str) -> None:
    uri = storage.join(root, "t.parquet")
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    with storage.writer(uri) as stream:
        pq.write_table(table, stream)
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["b"]).column_names == ["b"]


def test_a_writer_killed_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from tasks import storage
        with storage.writer(sys.argv[1]) as stream:
            stream.write(b"x" * 3_000_000)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    uri = str(tmp_path / "half.bin")
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code), uri]).returncode == -9
    assert not storage.exists(uri)
    assert storage.list_files(str(tmp_path), ".bin") == []
    storage.write_bytes(uri, b"whole")
    assert storage.read_bytes(uri) == b"whole"


def test_threads_that_write_the_same_file_at_once_all_succeed(tmp_path: Path) -> None:
    uri = str(tmp_path / "folder" / "same")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.write_bytes(uri, b"the same bytes"), range(64)))
    assert storage.list_files(str(tmp_path / "folder")) == [uri], "and no temporary file is left"


@pytest.fixture
def relayed(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """s3://shop by way of a relay, asked again without pauses."""
    relay = Relay(int(server.rpartition(":")[2]))
    for name, value in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage.write_bytes(WHOLE, DATA)
    with storage.writer(TABLE) as stream:
        pq.write_table(pa.table({"n": range(1000)}), stream)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)  # Arrow's client waits for seconds in between
    monkeypatch.setattr(storage, "_object_store", cache(lambda _, **options: pafs.S3FileSystem(retry_strategy=once, **options)))
    yield relay
    relay.cut()


WHOLE, TABLE = "s3://shop/relayed/whole.bin", "s3://shop/relayed/table.parquet"
DATA = bytes(range(256)) * 300
ASKED: dict[str, Callable[[Path], Any]] = {
    "exists": lambda folder: storage.exists(WHOLE),
    "list_files": lambda folder: storage.list_files("s3://shop/relayed"),
    "disk_usage": lambda folder: storage.disk_usage(WHOLE)[0],
    "size": lambda folder: storage.size(WHOLE),
    "read_bytes": lambda folder: storage.read_bytes(WHOLE),
    "read_verified": lambda folder: storage.read_verified(WHOLE, hashlib.sha256(DATA).hexdigest()).to_pybytes(),
    "read_table": lambda folder: storage.read_table(TABLE).num_rows,
    "local_copy": lambda folder: storage.local_copy(WHOLE, folder).read_bytes(),
    "sha256": lambda folder: storage.sha256(WHOLE),
    "write_bytes": lambda folder: storage.write_bytes(WHOLE, DATA),
    "delete": lambda folder: storage.delete("s3://shop/relayed/none"),
}
BROKEN_OFF = ("read_bytes", "read_verified", "read_table", "local_copy", "sha256")
"""What asks for bytes, of which half may come."""


@pytest.mark.parametrize("name", ASKED)
def test_a_store_that_errs_is_asked_again_and_never_taken_for_a_bad_file(
    relayed: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ask = ASKED[name]
    expected = ask(tmp_path)
    relayed.share = 1.0
    for kind in ("503", "reset", *(("truncated", "torn") if name in BROKEN_OFF else ())):
        relayed.faults = (kind,)
        with pytest.raises(
            StoreAway, match=r"relayed/?.*: the object store does not answer as it should \(.+\); try again later"
        ):
            ask(tmp_path)
    relayed.share, relayed.faults = 0.3, ("503", "reset")
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 20)
    assert [ask(tmp_path) for _ in range(4)] == [expected] * 4


def test_a_store_that_is_cut_off_for_a_moment_is_waited_for(relayed: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.1,) * 50)
    relayed.cut()
    threading.Timer(0.5, relayed.start).start()
    assert storage.read_bytes(WHOLE) == DATA


def test_what_is_wrong_with_a_file_is_told_at_once(relayed: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", ("no pause",))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("s3://shop/relayed/none")
    with pytest.raises(VitrineError, match="it is corrupt"):
        storage.read_verified(WHOLE, "0" * 64)
    assert storage.validator("s3://shop/relayed/none") is None
