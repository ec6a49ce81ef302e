"""The embedding job in Spark: each picture once, every product accounted for, and kills that change nothing."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.palette import PALETTE, palette
from serving.contract.preprocess import decode
from serving.search.image_fetch import Fetcher
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed import worker
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tasks.embed.spark import for_each_chunk, session
from tasks.embed.store import EmbeddingStore
from tests.embed.shop import encoder, picture, shop, snapshot

pytestmark = pytest.mark.slow

CONFIG = EmbedConfig(chunk=32, batch=8)


def run(taken: Snapshot, folder: Path, run_key: str, config: EmbedConfig = CONFIG) -> EmbedResult:
    return embed_snapshot(taken, folder / "encoder", "1", str(folder / "store"), run_key, folder / f"work-{run_key}", config)


def vectors(result: EmbedResult) -> pa.Table:
    shards = [
        pq.read_table(f) for s in range(result.shards) for f in storage.list_files(f"{result.vectors_uri}/shard={s}", ".parquet")
    ]
    return pa.concat_tables(shards)


def matrix(table: pa.Table) -> np.ndarray:
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of 120 products, three of whose pictures are unusable and two of which share one."""
    folder = tmp_path_factory.mktemp("embed")
    shop(folder / "shop", 120)
    (folder / "shop" / "images" / "p7.jpg").write_bytes(b"not a picture at all")
    data = (folder / "shop" / "images" / "p8.jpg").read_bytes()
    (folder / "shop" / "images" / "p8.jpg").write_bytes(data[: len(data) // 2])
    (folder / "shop" / "images" / "p9.jpg").unlink()
    (folder / "shop" / "images" / "p11.jpg").write_bytes((folder / "shop" / "images" / "p10.jpg").read_bytes())
    encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> tuple[Snapshot, EmbedResult]:
    taken = snapshot(place / "shop", place / "store")
    return taken, run(taken, place, "r1")


def test_every_product_is_embedded_or_in_quarantine(first: tuple[Snapshot, EmbedResult]) -> None:
    result = first[1]
    assert (result.catalogue, result.embedded, result.quarantined) == (120, 117, 3)
    assert result.embedded_now == 116  # two products share one picture
    assert result.reused == 0
    assert result.reasons == {"missing": 1, "not_an_image": 1, "truncated": 1}
    rows = {r["image_uri"]: r for r in pq.read_table(result.quarantine_uri).to_pylist()}
    assert rows["images/p9.jpg"]["reason"] == "missing"
    assert all(r["detail"] and r["run"] == "r1" for r in rows.values())
    assert result.summary == (
        "120 products = 117 embedded + 3 in quarantine (1 missing, 1 not_an_image, 1 truncated); "
        "116 pictures embedded now, 0 products reused; in quarantine: p7 (not_an_image), p8 (truncated), p9 (missing)"
    )


def test_vectors_are_those_of_the_encoder_sorted_by_key_in_their_shard(place: Path, first: tuple[Snapshot, EmbedResult]) -> None:
    folder = EncoderFolder(place / "encoder")
    session_ = folder.open("student.fp32")
    for shard in range(2):
        table = pq.read_table(f"{first[1].vectors_uri}/shard={shard}/part-00000.parquet")
        keys = table["key"].to_numpy()
        assert (keys % 2 == shard).all()
        assert (np.diff(keys) > 0).all()
    by_sha = {}
    for number in (0, 10, 119):
        data = (place / "shop" / "images" / f"p{number}.jpg").read_bytes()
        by_sha[hashlib.sha256(data).digest()] = session_.encode(decode(data, folder.manifest.preprocess)[None])[0]
    table = vectors(first[1])
    found = matrix(table).astype(np.float32)
    hits = [(i, s) for i, s in enumerate(table["image_sha256"].to_pylist()) if s in by_sha]
    assert len(hits) == 4
    for row, sha in hits:
        np.testing.assert_allclose(found[row], by_sha[sha], atol=1e-3)


def test_each_product_has_the_colours_of_its_picture(place: Path, first: tuple[Snapshot, EmbedResult]) -> None:
    table = vectors(first[1])
    seen = dict(zip(table["image_sha256"].to_pylist(), table[PALETTE].to_pylist(), strict=True))
    spec = EncoderFolder(place / "encoder").manifest.preprocess
    for number in (0, 10, 119):
        data = (place / "shop" / "images" / f"p{number}.jpg").read_bytes()
        assert seen[hashlib.sha256(data).digest()] == palette(decode(data, spec)).tobytes()


def test_the_store_knows_how_large_the_pictures_were(first: tuple[Snapshot, EmbedResult]) -> None:
    store = EmbeddingStore(first[1].store_uri, 16)
    parts = pa.concat_tables([store.part(c) for c in store.commits() if c.rows])
    assert set(parts["width"].to_pylist()) == set(parts["height"].to_pylist()) == {48}


def test_a_finished_run_is_returned_as_it_is(place: Path, first: tuple[Snapshot, EmbedResult]) -> None:
    assert run(first[0], place, "r1") == first[1]


def test_a_second_run_embeds_nothing_and_starts_no_spark(
    place: Path, first: tuple[Snapshot, EmbedResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.embed.job.session", lambda *_: pytest.fail("Spark was started for nothing"))
    monkeypatch.setattr(worker, "read_image", _reading_only_missing)
    again = run(first[0], place, "r2")
    assert (again.embedded_now, again.reused, again.embedded) == (0, 117, 117)
    assert vectors(again).equals(vectors(first[1]))


def _reading_only_missing(uri: str, root: str, web: Fetcher) -> bytes:
    from tasks.embed.images import read_image

    assert uri == "images/p9.jpg", f"{uri} did not change but was read again"
    return read_image(uri, root, web)


def test_only_what_changed_is_embedded_and_quarantine_is_left_when_the_bytes_change(
    place: Path, first: tuple[Snapshot, EmbedResult]
) -> None:
    picture(place / "shop" / "images" / "p9.jpg", 9)  # was missing
    picture(place / "shop" / "images" / "p7.jpg", 7)  # was not a picture
    picture(place / "shop" / "images" / "p20.jpg", 2020)  # changed
    taken = snapshot(place / "shop", place / "store", "s3")
    result = run(taken, place, "r3")
    assert (result.embedded, result.quarantined, result.embedded_now) == (119, 1, 3)
    assert result.reasons == {"truncated": 1}


DRIVER = """
import sys
from pathlib import Path
from tasks.catalog.snapshot import read_snapshot
from tests.embed.test_job import run, KILLED
folder = Path(sys.argv[1])
run(read_snapshot(sys.argv[2]), folder, "k1", KILLED)
"""
KILLED = EmbedConfig(chunk=16, batch=4)
STAYS = DRIVER.replace(
    "run(read", "from tests.embed import test_job\ntest_job.worker.embed_chunk = test_job.embed_some\nrun(read"
)


def embed_some(chunk: str, config: worker.WorkerConfig) -> None:
    """Embeds a chunk where fewer than eight are done; else it stays until it is killed."""
    if len(list(Path(config.store_uri).rglob("part-*.json"))) >= 8:
        time.sleep(600)
    worker.embed_chunk(chunk, config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot, EmbedResult]:
    """400 products embedded without a kill: what the killed runs must equal."""
    folder = tmp_path_factory.mktemp("kill")
    shop(folder / "shop", 400)
    encoder(folder / "encoder")
    taken = snapshot(folder / "shop", folder / "calm")
    return folder, taken, embed_snapshot(taken, folder / "encoder", "1", str(folder / "calm"), "k1", folder / "w", KILLED)


def test_a_killed_driver_goes_on_where_it_was(undisturbed: tuple[Path, Snapshot, EmbedResult]) -> None:
    folder, taken, calm = undisturbed
    commits = folder / "store" / "embeddings" / "tiny"
    process = subprocess.Popen(
        [sys.executable, "-c", STAYS, str(folder), taken.uri], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    family = [psutil.Process(process.pid)]
    try:
        done = _wait_for_commits(commits, 4, process)
        family += family[0].children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, left = psutil.wait_procs(family, timeout=90)
    assert not left, "Spark outlived its driver"
    before = {f: f.stat().st_mtime_ns for f in commits.rglob("*.json")}
    assert done <= len(before) <= 9, "some chunks are left to do"
    result = run(taken, folder, "k1", KILLED)
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in before.items()), "a finished chunk was embedded again"
    assert _counts(result) == _counts(calm)
    for shard in range(2):
        name = f"shard={shard}/part-00000.parquet"
        assert storage.sha256(f"{result.vectors_uri}/{name}") == storage.sha256(f"{calm.vectors_uri}/{name}")
    store = EmbeddingStore(result.store_uri, 16)
    assert len(store.checksums()) == len(set(store.checksums().to_pylist())) == 400


def _counts(result: EmbedResult) -> EmbedResult:
    """What was done, without where: parts say when they were written, so their checksums differ as well."""
    return replace(result, vectors_uri="", store_uri="", quarantine_uri="", parts_sha256="")


def _wait_for_commits(folder: Path, least: int, process: subprocess.Popen) -> int:
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        count = len(list(folder.rglob("part-*.json")))
        if count >= least:
            return count
        assert process.poll() is None, f"the driver ended by itself with {process.returncode}"
        time.sleep(0.005)
    raise AssertionError("the driver did not get going in five minutes")


def test_a_killed_python_worker_costs_its_chunk_only(tmp_path: Path) -> None:
    """The first worker that takes chunk 3 kills itself; Spark gives the chunk to another."""
    marker = tmp_path / "killed"
    log = tmp_path / "log"
    log.mkdir()

    def work(chunk: str) -> None:
        if chunk == "3" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (log / f"{chunk}-{time.monotonic_ns()}").touch()

    with session("local[2]", tmp_path) as spark:
        assert for_each_chunk(spark, [str(n) for n in range(8)], work) == 8
    assert marker.exists()
    assert sorted(f.name.split("-")[0] for f in log.iterdir()) == [str(n) for n in range(8)]


@pytest.mark.kill_drill
def test_the_job_survives_a_killed_worker_with_the_same_vectors(undisturbed: tuple[Path, Snapshot, EmbedResult]) -> None:
    folder, taken, calm = undisturbed
    home = folder / "worker-kill"
    code = DRIVER.replace("run(read", "__import__('tests.embed.killer', fromlist=['arm']).arm()\nrun(read")
    (home / "encoder").parent.mkdir()
    (home / "encoder").symlink_to(folder / "encoder")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home), taken.uri], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert process.wait(timeout=480) == 0
    assert (home / "store").exists()
    result = EmbedResult(**storage.read_json(f"{home}/store/vectors/k1/_manifest.json"))
    assert result.embedded == 400
    for shard in range(2):
        name = f"shard={shard}/part-00000.parquet"
        assert storage.sha256(f"{result.vectors_uri}/{name}") == storage.sha256(f"{calm.vectors_uri}/{name}")
